"""``vsync.Node(process=True)``: a node in a child process, which ends with its parent, and fails like any other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dlm
import vsync
from tests.vsync.support import until
from tests.vsync.transport.ports import free_ports
from vsync.errors import ConfigError, ForkedProcess, NotConnected, StateDirectoryError, TransportError
from vsync.events import Message
from vsync.transport.memory import MemoryHub
from vsync.types import ClusterConfig, Peer

pytestmark = pytest.mark.live


def configs(count: int = 1) -> list[ClusterConfig]:
    """Of a cluster of so many nodes on the loopback."""
    peers = tuple(Peer(n, f"n{n}", (f"127.0.0.1:{port}",)) for n, port in enumerate(free_ports(count), 1))
    return [ClusterConfig("test", peer.node, peers) for peer in peers]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the private folders are."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[vsync.Node, Path]]:
    """The only node of a cluster, and its private folder; for all tests that leave it alive."""
    place = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(place))
        node = vsync.Node(config=configs()[0], process=True).start()
    (folder,) = place.glob("vsync-node-*")
    with contextlib.closing(vsync.connect(str(folder / "node.sock"))):
        yield node, folder
        node.stop()
    node.stop()
    assert gone(node.pid)
    assert node.failure is None
    assert not folder.exists()


@pytest.fixture
def node(shared: tuple[vsync.Node, Path]) -> vsync.Node:
    """That one."""
    return shared[0]


def gone(pid: int) -> bool:
    """Whether there is no such process, or only what is left until somebody waits for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_it_is_used_like_any_node(node: vsync.Node) -> None:
    assert node.pid != os.getpid()
    assert os.getsid(node.pid) == node.pid
    assert node.config.uid == os.geteuid()
    view = next(node.views())
    assert [member.name for member in view.members] == ["n1"]
    assert node.status()["node"]["name"] == node.name == "n1"
    with node.join("g") as group:
        group.send(b"hello")
        message = next(event for event in group if isinstance(event, Message))
        assert message.data == b"hello"
    with dlm.Client(node) as locks, locks.lock("n", timeout=10) as held:
        assert held.valid
        assert held.check() is None


def test_it_is_used_by_tasks(node: vsync.Node) -> None:
    async def main() -> int:
        async with dlm.AsyncClient(node) as locks, locks.lock("n", timeout=10) as held:
            return held.fence

    assert asyncio.run(main()) > 0


def test_its_socket_is_nobody_elses(shared: tuple[vsync.Node, Path]) -> None:
    assert shared[1].stat().st_mode & 0o777 == 0o700
    with pytest.raises(vsync.VsyncError, match="can be started once"):
        shared[0].start()


def test_a_socket_for_others(folders: Path) -> None:
    path = folders / "for-others.sock"
    with vsync.Node(config=configs()[0], socket=path, process=True) as node, vsync.connect(str(path)) as session:
        assert session.node == node.name


def test_a_file_and_an_installed_service(folders: Path) -> None:
    (port,) = free_ports(1)
    path = folders / "cluster.toml"
    path.write_text(
        '[cluster]\nname = "test"\ntransport = "udp"\n[node]\nname = "a"\n'
        f'[[nodes]]\nid = 1\nname = "a"\naddress = "127.0.0.1:{port}"\n'
        '[dlm.lockspace.default]\nanswer = "stable"\n'
    )
    with vsync.Node(config=path, state_dir=folders / "state", process=True) as node, dlm.Client(node) as locks:
        assert locks.acquire("n", timeout=10).release(wait=True) is None
        node.record("test")
        until(lambda: list((folders / "state" / "flight").glob("*")))


def test_what_the_page_shows(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folders)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    nodes = f'[[nodes]]\nid = 1\nname = "a"\naddress = "{address}"\n'
    (folders / "cluster.toml").write_text(f'[cluster]\nname = "test"\n[node]\nname = "a"\n{nodes}')
    page = Path(__file__).parents[2] / "docs" / "embedding.md"
    snippets = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    assert len(snippets) == 2
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(snippet, names)


def test_two_of_them_and_a_goodbye() -> None:
    first, second = configs(2)
    one, two = vsync.Node(config=first, process=True), vsync.Node(config=second)
    with one, two:
        views = two.views()
        assert next(view for view in views if len(view.members) == 2)
        one.leave()
        assert one.wait(20)
        last = next(view for view in views if len(view.members) == 1)
        assert [member.name for member in last.left] == ["n1"]
    assert one.failure is two.failure is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_that_end_programs_mean_the_parent(node: vsync.Node, number: int) -> None:
    os.kill(node.pid, number)
    assert node.status()["node"]["name"] == "n1"


# ---------------------------------------------------------------- failures


def test_what_it_cannot_begin_with_is_raised_here(folders: Path) -> None:
    config = configs()[0]
    with vsync.Node(config=config, state_dir=folders / "state"):
        for wrong, where in ((StateDirectoryError, folders / "state"), (TransportError, folders / "other")):
            here = vsync.Node(config=config, state_dir=where)
            child = vsync.Node(config=config, state_dir=where, process=True)
            texts = []
            for each in (here, child):
                with pytest.raises(wrong) as error:
                    each.start()
                texts.append(str(error.value))
            assert texts[0] == texts[1]
            assert child.pid == 0
    assert not list(folders.glob("vsync-node-*"))


def test_what_cannot_be_in_another_process() -> None:
    config = configs()[0]
    with pytest.raises(ConfigError, match="services= cannot be given"):
        vsync.Node(config=config, services=[], process=True).start()
    with pytest.raises(ConfigError, match="must be a TransportConfig"):
        vsync.Node(config=config, transport=MemoryHub().transport(1), process=True).start()


def test_no_python_to_start(monkeypatch: pytest.MonkeyPatch, folders: Path) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(vsync.VsyncError, match="/no/such/python cannot be started"):
        vsync.Node(config=configs()[0], process=True).start()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(vsync.VsyncError, match="has ended with 1 before it began"):
        vsync.Node(config=configs()[0], process=True).start()
    assert not list(folders.glob("vsync-node-*"))


def test_its_death_is_a_failure(folders: Path) -> None:
    with vsync.Node(config=configs()[0], process=True) as node, dlm.Client(node) as locks:
        held = locks.acquire("n", timeout=10)
        os.kill(node.pid, signal.SIGKILL)
        assert node.wait(20)
        assert str(node.failure) == "the process of the node has ended with -9"
        until(lambda: not held.valid)
        with pytest.raises(dlm.LockLost):
            held.check()
        with pytest.raises(NotConnected):
            node.channel()
    assert str(node.failure) == "the process of the node has ended with -9"
    assert not list(folders.glob("vsync-node-*"))


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # there are threads; the child only asks
def test_in_a_forked_process_it_is_foreign(node: vsync.Node) -> None:
    read, write = os.pipe()
    child = os.fork()
    if not child:  # nothing of the tests may run here
        try:
            node.channel()
        except ForkedProcess:
            node.record("nothing")
            os.write(write, b"foreign, %d, %d" % (node.wait(), node.failure is None))
        finally:
            node.stop()
            os._exit(0)
    os.close(write)
    assert os.read(read, 100) == b"foreign, 1, 1"
    os.close(read)
    os.waitpid(child, 0)
    assert node.status()["node"]["name"] == "n1"


# ---------------------------------------------------------------- the parent's end

PARENT = """
import os, sys, time, tempfile, vsync
from vsync.types import ClusterConfig, Peer
tempfile.tempdir = sys.argv[1]
config = ClusterConfig("test", 1, (Peer(1, "n1", (f"127.0.0.1:{sys.argv[2]}",)),))
node = vsync.Node(config=config, process=True).start()
next(node.views())
heir = os.fork() if sys.argv[3] == "forks" else 0
if sys.argv[3] == "forks" and not heir:
    time.sleep(120)  # with all files that were open
print(node.pid, heir, flush=True)
if sys.argv[3] == "ends":
    sys.exit(0)
time.sleep(120)
"""


@pytest.mark.parametrize("how", ["is killed", "ends", "forks"])
def test_it_ends_with_its_parent(tmp_path: Path, how: str) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path), str(free_ports(1)[0]), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        try:
            assert parent.stdout is not None
            pid, heir = map(int, parent.stdout.readline().split())
            if how != "ends":
                assert not gone(pid)
        finally:
            if how != "ends":
                parent.kill()
    try:
        until(lambda: gone(pid))
        until(lambda: not list(tmp_path.glob("vsync-node-*")))
    finally:
        if heir:
            os.kill(heir, signal.SIGKILL)
