"""``vsync demo`` as people run it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from vsync import client
from vsync.demo import main

DEMO = [sys.executable, "-m", "vsync", "demo"]
pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(
        not entry_points(group="vsync.demo"), reason="vsync is not installed (pip install -e .): no entry points"
    ),
]


def until(condition: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_the_demo_shows_the_lock_moving_and_the_fence_rising() -> None:
    done = subprocess.run(DEMO, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert all(re.match(r" *\d+\.\d\d s  (demo|node \w|client \w) ", line) for line in lines)
    kill = next(i for i, line in enumerate(lines) if "kill -9" in line)
    victim = re.search(r"kill -9 node (\w)", lines[kill]).group(1)  # type: ignore[union-attr]
    rest = "\n".join(lines[kill:])
    assert f"client {victim} LockLost: daemon_gone" in rest
    assert re.search(rf"view \S+: .*\(primary\) -{victim}", rest)
    assert f"the lock moved from {victim} to " in rest
    assert re.search(r"view \S+: a b c \(primary\) .*\+", rest)
    assert f"client {victim} holds" in rest
    fences = [int(fence) for fence in re.findall(r"fence (\d+)$", done.stdout, re.MULTILINE)]
    assert len(fences) > 4
    assert fences == sorted(set(fences))
    folder = re.search(r"in (\S+)$", lines[0]).group(1)  # type: ignore[union-attr]
    assert not os.path.exists(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_kept_cluster_runs_until_it_is_ended(number: signal.Signals) -> None:
    with subprocess.Popen([*DEMO, "--keep", "--nodes", "2", "--json"], stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        ready = json.loads(demo.stdout.readline())
        assert ready["v"] == 1
        assert [node["name"] for node in ready["nodes"]] == ["a", "b"]
        assert ready["VSYNC_URL"] == ready["nodes"][0]["url"] == f"unix://{ready['nodes'][0]['socket']}"
        for node in ready["nodes"]:
            assert os.path.exists(node["config"])
            with client.connect(node["url"]) as session:
                assert len(session.status()["view"]["members"]) == 2
        demo.send_signal(number)
        assert demo.wait(30) == 0
    assert all(gone(node["pid"]) for node in ready["nodes"])
    assert not os.path.exists(os.path.dirname(ready["nodes"][0]["socket"]))


def test_the_daemons_die_with_a_demo_that_is_killed(tmp_path: Path) -> None:
    surroundings = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [*DEMO, "--keep", "--nodes", "1", "--json"], stdout=subprocess.PIPE, text=True, env=surroundings
    ) as demo:
        assert demo.stdout is not None
        ready = json.loads(demo.stdout.readline())
        demo.kill()
    for node in ready["nodes"]:
        until(lambda pid=node["pid"]: gone(pid), f"vsyncd {node['pid']} has outlived the demo")  # type: ignore[misc]


@pytest.mark.parametrize("arguments", [["--nodes", "2"], ["--json"], ["--nodes", "99", "--keep"], ["now"]])
def test_usage_errors_are_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "vsync demo" in capsys.readouterr().err
