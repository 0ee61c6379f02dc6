"""Programs that services have run: their input, output, end, and all the ways in which that goes wrong."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vsync.support import ALONE, until
from tests.vsync.test_node import Running
from vsync.core import Core
from vsync.programs import OUTPUT_LIMIT, Programs
from vsync.service import Kill, Spawn
from vsync.testing import SimCluster
from vsync.testing.node import SimNode
from vsync.testing.plugin import Plugin
from vsync.types import ClusterConfig

SECOND = 1_000_000
LONG = 60 * SECOND


class Shop:
    """Starts programs and keeps what they came to."""

    def __init__(self) -> None:
        self.ended: dict[int, tuple[int | None, bytes]] = {}
        self.threads: set[str] = set()
        self.programs = Programs(self._done)

    def _done(self, wanted: Spawn, code: int | None, output: bytes) -> None:
        assert wanted.ticket not in self.ended
        self.threads.add(threading.current_thread().name)
        self.ended[wanted.ticket] = (code, output)

    def start(self, *argv: str, stdin: bytes = b"", timeout: int = LONG, ticket: int = 1) -> None:
        self.programs.start(Spawn("test", ticket, argv, stdin, timeout))

    def result(self, ticket: int = 1) -> tuple[int | None, bytes]:
        return until(lambda: self.ended.get(ticket), "the end of a program")  # type: ignore[no-any-return]

    def python(self, text: str, **more: Any) -> tuple[int | None, bytes]:
        self.start(sys.executable, "-c", text, **more)
        return self.result()


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()
    yield shop
    shop.programs.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_input_output_and_exit_code(shop: Shop) -> None:
    text = "import sys; t = sys.stdin.read(); print(t.upper()); print('oh', file=sys.stderr); sys.exit(3)"
    assert shop.python(text, stdin=b"action=off\n") in [(3, b"oh\nACTION=OFF\n\n"), (3, b"ACTION=OFF\n\noh\n")]
    assert shop.threads == {"vsync-program"}


def test_a_program_that_does_not_listen(shop: Shop) -> None:
    assert shop.python("import os; os.close(0)", stdin=b"x" * 300_000) == (0, b"")


def test_much_input_and_much_output_at_once(shop: Shop) -> None:
    text = "import sys, shutil; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)"
    assert shop.python(text, stdin=b"y" * (1 << 20)) == (0, b"y" * OUTPUT_LIMIT)


@pytest.mark.parametrize(
    ("name", "content", "mode", "why"),
    [
        ("absent", None, 0, "No such file or directory"),
        ("locked", "#!/bin/sh\n", 0o644, "Permission denied"),
        ("strange", "no program\n", 0o755, "Exec format error"),
        ("orphan", "#!/no/such/interpreter\n", 0o755, "No such file or directory"),
    ],
)
def test_what_cannot_be_started(
    shop: Shop, tmp_path: Path, name: str, content: str | None, mode: int, why: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    shop.start(str(path))
    assert shop.result() == (None, f"{path} cannot be started: {why}".encode())


def test_a_name_is_looked_for(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = tmp_path / "fence_here"
    agent.write_text("#!/bin/sh\nexit 4\n")
    agent.chmod(0o755)
    monkeypatch.setattr("vsync.programs.MORE_PATH", (str(tmp_path),))
    shop.start("fence_here")
    assert shop.result() == (4, b"")
    shop.start("fence_\0", ticket=2)
    assert shop.result(2)[0] is None


def test_time_is_up_for_the_whole_group(shop: Shop) -> None:
    text = """
import os, sys, time
child = os.fork()
if child:
    print(os.getpid(), child, os.getpgid(0), flush=True)
time.sleep(1000)
"""
    shop.start(sys.executable, "-c", text, timeout=SECOND)
    code, output = shop.result()
    assert code is None
    numbers, why = output.split(b"\n", 1)
    assert why.endswith(b"no end in time, killed")
    leader, child, group = map(int, numbers.split())
    assert leader == group != os.getpgid(0)
    until(lambda: not alive(leader) and not alive(child), "the end of the group")


def test_what_its_children_do_does_not_matter(shop: Shop) -> None:
    """A child keeps the pipe open: the program has ended all the same."""
    text = "import os, sys, time\nif os.fork():\n print('done', flush=True); os._exit(0)\ntime.sleep(5)"
    assert shop.python(text) == (0, b"done\n")


def test_a_program_is_killed_by_somebody_else(shop: Shop) -> None:
    code, output = shop.python("import os; print('x', flush=True); os.kill(os.getpid(), 9)")
    assert code is None
    assert output == b"x\n\n" + f"{sys.executable}: killed by signal {signal.SIGKILL}".encode()


def test_not_wanted_any_more(shop: Shop) -> None:
    shop.start(sys.executable, "-c", "import time; time.sleep(1000)")
    shop.programs.kill("test", 2)  # none of these
    shop.programs.kill("test", 1)
    assert shop.result()[0] is None
    assert shop.result()[1].endswith(b"not wanted any more, killed")
    shop.programs.kill("test", 1)


def test_at_the_end_all_are_killed(shop: Shop) -> None:
    for ticket in (1, 2, 3):
        shop.start(sys.executable, "-c", "import time; time.sleep(1000)", ticket=ticket)
    shop.programs.close()
    assert [shop.result(ticket)[0] for ticket in (1, 2, 3)] == [None] * 3


def test_the_loop_runs_it_and_tells_the_core() -> None:
    running = Running()
    told: list[Any] = []
    running.core.spawned = lambda *what: told.append((threading.current_thread() is running.thread, *what))
    try:
        running.put(Spawn("fake", 7, ("sh", "-c", "cat; exit 2"), b"ab", LONG))
        until(lambda: told)
        running.put(Spawn("fake", 8, ("sleep", "1000"), b"", LONG), Kill("fake", 8))
        until(lambda: len(told) == 2)
        running.put(Spawn("fake", 9, ("sleep", "1000"), b"", LONG))
    finally:
        running.loop.stop()
        running.join()
    assert told[0][:5] == (True, "fake", 7, 2, b"ab")
    assert told[1][2:4] == (8, None)
    assert len(told) == 2


def test_a_password_does_not_show() -> None:
    assert "hunter2" not in repr(Spawn("dlm", 1, ("fence_x",), b"passwd=hunter2\n", 1))


class Runner:
    """A service that asks for a program and notes its end."""

    name, tag = "runner", 77

    def __init__(self) -> None:
        self.ended: list[tuple[int, int | None, bytes, int]] = []

    def spawned(self, *what: Any) -> None:
        self.ended.append(what)
        self.host.reply(5, 6, what[0])

    def attach(self, host: Any, now: int) -> None:
        self.host = host
        host.spawn("runner", 3, ["fence_x", "-v"], b"in", 40)
        host.kill("runner", 4)

    def __getattr__(self, name: str) -> Any:
        if name in ("lease", "rule_version"):
            raise AttributeError(name)
        return {"announce": lambda views: b"", "next_deadline": lambda: None}.get(name, lambda *_: None)


def test_the_core_passes_both_ways() -> None:
    runner: Any = Runner()
    core = Core(ALONE, 1, [runner], None)
    core.start(10)
    wanted = [output for output in core.take_outputs() if isinstance(output, Spawn | Kill)]
    assert wanted == [Spawn("runner", 3, ("fence_x", "-v"), b"in", 40), Kill("runner", 4)]
    core.spawned("runner", 3, None, b"out", 60)
    assert runner.ended == [(3, None, b"out", 60)]


class Virtual(Plugin):
    """Programs of the simulator: ``sleep``, and whatever needs longer than it may."""

    def __init__(self) -> None:
        self.runners: dict[int, Any] = {}

    def services(self, config: ClusterConfig) -> list[Any]:
        self.runners[config.node] = Runner()
        return [self.runners[config.node]]

    def program(self, node: SimNode, wanted: Spawn) -> tuple[int, int | None, bytes] | None:
        return (int(wanted.argv[1]), 5, b"slept") if wanted.argv[0] == "sleep" else None


def test_the_simulator_runs_virtual_programs() -> None:
    world = Virtual()
    with SimCluster(2, plugins=[world]) as cluster:
        cluster.settle()
        for node, runner in world.runners.items():
            assert [end[:3] for end in runner.ended] == [(3, None, b"no end in time")], node
            runner.ended.clear()
        host = world.runners[1].host

        def ask() -> None:
            for ticket, time in ((1, 5_000), (2, 500_000), (3, 50_000), (4, 20_000)):
                host.spawn("runner", ticket, ["sleep", str(time)], b"", 100_000)
            host.kill("runner", 4)

        cluster[1]._input(lambda now: ask())
        cluster.advance(0.2)
        ended = [end[:3] for end in world.runners[1].ended]
        slept = b"slept"
        assert ended == [(4, None, b"killed"), (1, 5, slept), (3, 5, slept), (2, None, b"no end in time")]
        cluster[1]._input(lambda now: ask())
        cluster.crash(1)
        cluster.restart(1)
        cluster.settle()
        assert [end[:2] for end in world.runners[1].ended] == [(3, None)]  # of this life, none of the former
