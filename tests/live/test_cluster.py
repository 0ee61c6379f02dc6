"""Nodes and clients that stop, die, leave, or lose their disk: who is told what, and that the rest goes on."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import pytest

import dlm
from dlm.client import Client
from dlm.held import Held
from tests.live.helpers import holder, log_lines, run, start, status, until, works
from vsync import client
from vsync.errors import NotConnected
from vsync.events import ClusterView, Message, View
from vsync.testcluster import LocalCluster, die_with_parent

pytestmark = pytest.mark.live


class Waiter(threading.Thread):
    """Asks for a lock in a thread of its own and keeps it once it has it."""

    def __init__(self, locks: Client, name: str) -> None:
        super().__init__(daemon=True)
        self.held: Held | None = None
        self._locks, self._name = locks, name
        self.start()

    def run(self) -> None:
        self.held = self._locks.acquire(self._name, timeout=60)

    def wait(self) -> Held:
        """The lock, once it is granted."""
        held: Held = until(lambda: self.held, "the lock", 30)
        return held


def waits(locks: Client, name: str) -> Waiter:
    """A waiter that stands in the queue, as its own node sees it."""
    waiter = Waiter(locks, name)
    until(lambda: (info := locks.show(name)) is not None and info.waiters, f"a waiter for {name}")
    return waiter


def make_shared(name: str, *sessions: Client) -> list[Held]:
    """NL locks at several nodes: the queues of ``name`` are known to all of them."""
    return [session.acquire(name, dlm.Mode.NL) for session in sessions]


# ---------------------------------------------------------------- clients


@pytest.mark.parametrize("form", ["private", "shared"])
def test_a_killed_clients_locks_are_free_at_once(unharmed: LocalCluster, form: str) -> None:
    """… and no view change, no lease is needed for it: the test's fixture sees that the view stays."""
    name = f"killed-{form}"
    with dlm.connect(unharmed["a"].url) as here, dlm.connect(unharmed["b"].url) as there:
        keep = make_shared(name, here, there) if form == "shared" else []
        with holder(unharmed["a"], name) as (process, fence):
            local = here.try_lock(name)
            assert local is None
            waiter = waits(there, name) if form == "shared" else Waiter(there, name)
            assert waiter.held is None
            process.kill()
            held = waiter.wait()
            assert held.fence > fence
        held.release(wait=True)
        for each in keep:
            each.release(wait=True)


def test_a_killed_waiter_is_passed_over(unharmed: LocalCluster) -> None:
    with dlm.connect(unharmed["a"].url) as here, dlm.connect(unharmed["c"].url) as there:
        keep = make_shared("queue", here, there)
        first = here.acquire("queue")
        victim = subprocess.Popen(
            [sys.executable, "-m", "dlm", "--url", unharmed["b"].url, "run", "queue", "--", "true"],
            preexec_fn=die_with_parent(),
        )
        until(lambda: len(here.show("queue").waiters or ()) == 1, "the first in the queue")
        second = waits(there, "queue")
        until(lambda: len(here.show("queue").waiters or ()) == 2, "the second in the queue")
        victim.kill()
        victim.wait()
        until(lambda: len(here.show("queue").waiters or ()) == 1, "the end of the first in the queue")
        first.release()
        second.wait().release()
        for each in keep:
            each.release(wait=True)


# ---------------------------------------------------------------- groups

#: A program that joins a group, says so, sends 30 messages into it, and stays until it is killed.
MEMBER = """
import sys, vsync
group = vsync.connect(sys.argv[1], "member").join("g")
for number in range(30):
    group.send(b"member %d" % number)
print("joined", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def member(cluster: LocalCluster, name: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that is a member of group g at a node."""
    process = subprocess.Popen(
        [sys.executable, "-c", MEMBER, cluster[name].url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "joined\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


class Listener:
    """A member of group g in this process, and all it has heard."""

    def __init__(self, url: str) -> None:
        self.session = client.connect(url, "listener")
        self.group = self.session.join("g")
        self.heard: list[View | Message] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(NotConnected):
            self.heard.extend(self.group)

    def leavers(self) -> list[tuple[str, str]]:
        """Who has left the group, and why, in order."""
        views = [event for event in list(self.heard) if isinstance(event, View)]
        return [(process.name, process.reason) for view in views for process in view.left]

    def said(self) -> list[bytes]:
        """The messages it has heard, in order."""
        return [event.data for event in list(self.heard) if isinstance(event, Message)]


def test_a_group_sees_each_end_once_and_everything_in_one_order(cluster: LocalCluster) -> None:
    one, two = (Listener(cluster[name].url) for name in "ab")
    until(lambda: any(isinstance(event, View) and len(event.members) == 2 for event in list(one.heard)), "both")
    with member(cluster, "c") as process:
        for number in range(30):
            one.group.send(b"one %d" % number)
            two.group.send(b"two %d" % number)
        process.kill()
        until(lambda: one.leavers() and two.leavers(), "the end of a client")
    assert one.leavers() == two.leavers() == [("member", "procdown")]

    with member(cluster, "c") as process:
        cluster.kill("c")
        until(lambda: len(one.leavers()) > 1 and len(two.leavers()) > 1, "the end of a node")
    assert one.leavers() == two.leavers() == [("member", "procdown"), ("member", "nodedown")]

    one.group.send(b"last")
    until(lambda: all(b"last" in each.said() for each in (one, two)), "the last message")
    assert one.said() == two.said()
    assert [each for each in one.said() if each.startswith(b"one")] == [b"one %d" % n for n in range(30)]
    both = next(i for i, event in enumerate(one.heard) if isinstance(event, View) and len(event.members) == 2)
    assert one.heard[both:] == two.heard  # every view and every message, from the second one's first view on
    for each in (one, two):
        each.session.close()


# ---------------------------------------------------------------- nodes


def test_a_stopped_daemon(cluster: LocalCluster) -> None:
    """Its clients' handles end by themselves, before anybody else gets the locks (design §5.4)."""
    with dlm.connect(cluster["c"].url) as there, dlm.connect(cluster["a"].url) as here:
        told: list[str] = []
        held = there.acquire("n", on_lost=lambda _, reason: told.append(reason))
        held.check()
        cluster.stop("c")
        asked = [start("vsync", "status", "--url", cluster["c"].url), start("dlm", "-u", cluster["c"].url, "ls")]
        waiter = Waiter(here, "n")
        granted = waiter.wait()
        assert not held.valid
        with pytest.raises(dlm.LockLost, match="lease"):
            held.check()
        assert granted.fence > held.fence
        cluster.wait_view(["a", "b"])
        for process in asked:
            out, said = process.communicate(timeout=30)
            assert (process.returncode, out) == (4, ""), said
            assert f"the daemon at {cluster['c'].url} does not answer; is the process stopped" in said
        cluster.cont("c")
        cluster.wait_view(["a", "b", "c"])
        assert held.lost.wait(20)
        until(lambda: held.lost.reason == "evicted", "the news of the loss")
        until(lambda: told, "the callback")
        with pytest.raises(dlm.LockLost, match="the cluster went on without this node"):
            held.check()
        assert granted.valid
        granted.release()
        with there.lock("n", timeout=20) as again:
            assert again.fence > granted.fence


def test_a_dead_daemon(cluster: LocalCluster) -> None:
    url = cluster["c"].url
    with dlm.connect(url) as there, client.connect(url) as session:
        held = there.acquire("n")
        cluster.kill("c")
        assert held.lost.wait(20)
        assert held.lost.reason == "daemon_gone"
        for question in (lambda: there.acquire("m"), session.status, held.check):
            with pytest.raises((dlm.NotConnected, NotConnected, dlm.LockLost)) as gone:
                question()
            assert url in str(gone.value) or isinstance(gone.value, dlm.LockLost)
    for connect in (dlm.connect, client.connect):
        with pytest.raises(ConnectionError) as refused:
            connect(url)
        assert f"the daemon at {url} is not there; start vsyncd, or set VSYNC_URL or --url" in str(refused.value)
    for words in (
        ["vsync", "status", "--url", url],
        ["vsync", "members", "--json", "--url", url],
        ["dlm", "--url", url, "ls"],
        ["dlm", "--url", url, "show", "n"],
        ["dlm", "--url", url, "run", "n", "--", "true"],
    ):
        result = run(*words)
        assert (result.returncode, result.stdout) == (4, ""), words
        (line,) = result.stderr.splitlines()
        assert url in line
        assert "start vsyncd" in line
    cluster.wait_view(["a", "b"])
    works(cluster)


def grants_wait(cluster: LocalCluster, name: str) -> int:
    """How long, in ms, the node still holds back grants because somebody vanished who may hold leases."""
    found: int = status(cluster, name)["services"]["dlm"]["grants_wait_ms"]
    return found


def test_leaving_is_not_dying(cluster: LocalCluster) -> None:
    """A node that leaves frees its clients' locks at once; one that is killed, when its leases have run out."""
    views: SimpleQueue[ClusterView] = SimpleQueue()
    watching = client.connect(cluster["b"].url)
    threading.Thread(target=lambda: put_all(watching.views(), views), daemon=True).start()
    until(lambda: views.qsize() and views.get(), "the first view")
    with dlm.connect(cluster["b"].url) as here:
        until(lambda: not grants_wait(cluster, "b"), "the time that a new cluster waits")
        with dlm.connect(cluster["c"].url) as there:
            held, waiter = there.acquire("n"), Waiter(here, "n")
            assert cluster.leave("c") == 0
            granted = waiter.wait()
            assert not grants_wait(cluster, "b")
            assert held.lost.reason in ("leaving", "daemon_gone")
            assert granted.fence > held.fence
            granted.release(wait=True)
        left = until(lambda: after(views, lambda view: view.left), "the view without it")
        assert [life.name for life in left.left] == ["c"]
        assert left.reason.endswith("a member left (node 3)")  # a may have said so before c was heard

        cluster.restart("c")
        cluster.wait_view(["a", "b", "c"])
        with dlm.connect(cluster["c"].url) as there:
            held, waiter = there.acquire("n"), Waiter(here, "n")
            cluster.kill("c")
            until(lambda: grants_wait(cluster, "b"), "a view that holds back grants")
            granted = waiter.wait()
            assert held.lost.reason == "daemon_gone"
            assert granted.fence > held.fence
            granted.release(wait=True)
        left = until(lambda: after(views, lambda view: view.left), "the view without it")
        assert [life.name for life in left.left] == ["c"]
        assert "left" not in left.reason
    watching.close()


def put_all(source: Iterator[ClusterView], sink: SimpleQueue[ClusterView]) -> None:
    """Carry regular views over until the session ends."""
    with contextlib.suppress(NotConnected):
        for view in source:
            if not view.transitional:
                sink.put(view)


def after(views: SimpleQueue[ClusterView], wanted: Callable[[ClusterView], object]) -> ClusterView | None:
    """The next view that is as wanted, if it is there already."""
    while not views.empty():
        if wanted(view := views.get()):
            return view
    return None


def test_a_node_without_quorum_says_so(cluster: LocalCluster) -> None:
    with dlm.connect(cluster["b"].url) as here:
        held = here.acquire("n")
        cluster.kill("a")
        cluster.kill("c")
        assert held.lost.wait(20)
        until(lambda: not status(cluster, "b")["view"]["primary"], "the verdict")
        assert not held.valid
        url = cluster["b"].url
        for command in ("status", "members"):
            result = run("vsync", command, "--url", url)
            assert result.returncode == 3
        assert "NON-PRIMARY" in run("vsync", "status", "--url", url).stdout
        with pytest.raises(dlm.NoQuorum):
            here.try_lock("m")
        until(lambda: log_lines(cluster["b"], " alone "), "the reason in its log")
        cluster.restart("c")
        cluster.wait_view(["b", "c"])
        works(cluster)


# ---------------------------------------------------------------- disks


def test_a_full_disk_does_not_matter() -> None:
    """The record is written in place: rings come and go, and the node remembers them (EVS-E6)."""
    cluster = LocalCluster()
    state = cluster.folder / "c"
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.close)
        state.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", state]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("only root may make a small disk")
        stack.callback(subprocess.run, ["umount", state], check=True)
        stack.callback(lambda: cluster["c"].running and cluster.kill("c"))
        cluster.start()
        with contextlib.suppress(OSError), open(state / "filler", "wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        locks = stack.enter_context(dlm.connect(cluster["c"].url))
        held = locks.acquire("n")
        assert cluster.leave("b") == 0
        cluster.wait_view(["a", "c"])
        assert held.valid
        cluster.kill("a")
        cluster.wait(lambda: not (cluster.status("c") or {"view": {"primary": True}})["view"]["primary"], "alone")
        cluster.restart("b")
        cluster.wait_view(["b", "c"])
        assert held.wait_valid(20)


def test_a_node_whose_state_directory_is_removed_stops() -> None:
    """It may not go on without remembering the rings it took part in (EVS-E6); the others go on without it."""
    cluster = LocalCluster()
    state = cluster.folder / "c"
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.close)
        cluster.start()
        locks = stack.enter_context(dlm.connect(cluster["c"].url))
        held = locks.acquire("n")
        shutil.rmtree(state)
        assert held.valid  # nothing has to be written now
        assert cluster.leave("b") == 0  # a change of the ring has to be
        broken = cluster["c"].process
        assert broken is not None
        assert broken.wait(20) == 1
        cluster["c"].process = None  # its end was expected
        assert held.lost.wait(20)
        with pytest.raises(dlm.NotConnected, match=f"state directory {state} record cannot be written"):
            locks.acquire("m")
        said = cluster["c"].log.read_text()
        assert f"vsyncd: state directory {state} record cannot be written: " in said
        assert "Traceback" not in said
        cluster.restart("b")
        cluster.wait_view(["a", "b"])
        works(cluster)
