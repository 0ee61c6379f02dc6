"""Recipes over real daemons, when what holds something is killed: a process, or a whole node."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import dlm
from dlm.recipes import Election, Leader, Permit, Term
from tests.live.helpers import until
from vsync.testcluster import LocalCluster, LocalNode, die_with_parent

pytestmark = pytest.mark.live
LONG_S = 30.0

#: Programs that say what they have got, and keep it until they are killed.
LEADER = """
import sys, dlm
for term in dlm.connect(sys.argv[1], name="leader").election(sys.argv[2], identity="program"):
    print(term.fence, flush=True)
    term.lost.wait()
"""
PERMITS = """
import sys, dlm
semaphore = dlm.connect(sys.argv[1], name="permits").semaphore(sys.argv[2], 2)
permits = [semaphore.acquire(), semaphore.acquire()]
print(min(permit.fence for permit in permits), flush=True)
sys.stdin.read()
"""
PARTY = """
import sys, dlm
with dlm.connect(sys.argv[1], name="party").barrier(sys.argv[2], 2):
    print(1, flush=True)
    sys.stdin.read()
"""
ARRIVES = """
import sys, dlm
print(1, flush=True)
dlm.connect(sys.argv[1], name="party").barrier(sys.argv[2], 2).wait()
sys.stdin.read()
"""


@contextlib.contextmanager
def program(text: str, node: LocalNode, name: str) -> Iterator[tuple[subprocess.Popen[str], Callable[[], int]]]:
    """Another process at a node; gives it, and what waits for the number that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-c", text, node.url, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    output = process.stdout
    try:
        yield process, lambda: int(output.readline())
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()


class Later(threading.Thread):
    """A call in a thread of its own, and its result."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._result: list[Any] = []
        self.start()

    def run(self) -> None:
        self._result.append(self._call())

    def result(self) -> Any:
        return until(lambda: self._result, "the result", LONG_S)[0]


def campaigns(election: Election) -> Later:
    """A candidate that stands in line."""
    later = Later(lambda: election.campaign(LONG_S))
    until(lambda: election.candidates(), "a candidate")
    return later


class Changes:
    """What an observer was told."""

    def __init__(self, election: Election) -> None:
        self.seen: list[Leader | None] = []
        threading.Thread(target=self._run, args=(election,), daemon=True).start()
        until(lambda: self.seen, "the leader now")

    def _run(self, election: Election) -> None:
        with contextlib.suppress(dlm.NotConnected):
            for leader in election.changes():
                self.seen.append(leader)

    def identities(self) -> list[str | None]:
        return [leader and leader.identity for leader in self.seen]


def test_a_killed_leader_is_followed(unharmed: LocalCluster) -> None:
    with dlm.connect(unharmed["b"].url) as there, dlm.connect(unharmed["c"].url) as watching:
        with program(LEADER, unharmed["a"], "jobs") as (leader, fence):
            old = fence()
            changes = Changes(watching.election("jobs"))
            assert changes.identities() == ["program"]
            candidate = campaigns(there.election("jobs", "next"))
            leader.kill()
            term: Term = candidate.result()
        assert term.fence > old
        until(lambda: changes.identities()[-1] == "next", "the observer sees the next leader")
        leading = there.election("jobs").leader()
        assert leading is not None
        assert (leading.identity, leading.term, leading.node) == ("next", term.fence, 2)
        term.resign()
        until(lambda: changes.identities()[-1] is None, "the observer sees that nobody leads")


def test_a_killed_leaders_node_is_followed(cluster: LocalCluster) -> None:
    """… by a term of the next ring; the old leader knows that it leads no more."""
    with dlm.connect(cluster["a"].url) as here, dlm.connect(cluster["b"].url) as there:
        old = here.election("jobs", "old").campaign(LONG_S)
        changes = Changes(there.election("jobs"))
        candidate = campaigns(there.election("jobs", "new"))
        cluster.kill("a")
        assert old.lost.wait(LONG_S)
        term: Term = candidate.result()
        assert term.fence >> 32 > old.fence >> 32
        until(lambda: changes.identities()[-1] == "new", "the observer sees the next leader")
        with pytest.raises(dlm.LockLost):
            old.resign()
        term.resign()


def test_a_killed_holders_permits_come_back(unharmed: LocalCluster) -> None:
    with dlm.connect(unharmed["b"].url) as there, dlm.connect(unharmed["c"].url) as third:
        with program(PERMITS, unharmed["a"], "pool") as (holder, fence):
            old = fence()
            assert there.semaphore("pool", 2).try_acquire() is None
            semaphores = [locks.semaphore("pool", 2) for locks in (there, third)]
            waits = [Later(lambda mine=mine: mine.acquire(LONG_S)) for mine in semaphores]
            until(lambda: len(there.contenders("pool/permits") or ()) == 1, "one in line behind the first")
            holder.kill()
            permits: list[Permit] = [each.result() for each in waits]
        assert {permit.number for permit in permits} == {0, 1}
        assert min(permit.fence for permit in permits) > old
        for permit in permits:
            permit.release(wait=True)


def test_permits_of_a_killed_node_come_back(cluster: LocalCluster) -> None:
    with dlm.connect(cluster["c"].url) as here, dlm.connect(cluster["a"].url) as there:
        permit = here.semaphore("pool", 1).acquire(LONG_S)
        waits = Later(lambda: there.semaphore("pool", 1).acquire(LONG_S))
        until(lambda: (info := there.show("pool/permits/0")) and info.waiters, "somebody waits for the permit")
        cluster.kill("c")
        after: Permit = waits.result()
        assert not permit.valid
        assert after.fence >> 32 > permit.fence >> 32
        after.release()


def arrived(locks: dlm.Client, name: str) -> bool:
    """Whether a party of this client's node waits at the barrier."""
    return any(row.holders for row in locks.ls(f"{name}/barrier/"))


def test_a_killed_party_does_not_count(unharmed: LocalCluster) -> None:
    with contextlib.ExitStack() as stack:
        first, second, third = (stack.enter_context(dlm.connect(unharmed[name].url)) for name in "abc")
        with program(ARRIVES, unharmed["a"], "meet") as (process, begins):
            begins()
            until(lambda: arrived(first, "meet"), "the party has arrived")
            process.kill()
            until(lambda: not arrived(first, "meet"), "the party has gone")
        waits = Later(lambda: second.barrier("meet", 2).wait(LONG_S))
        until(lambda: arrived(second, "meet"), "the next party has arrived")
        third.barrier("meet", 2).wait(LONG_S)
        waits.result()


def test_leaving_together_does_not_wait_for_the_killed(unharmed: LocalCluster) -> None:
    with dlm.connect(unharmed["b"].url) as there, program(PARTY, unharmed["a"], "meet") as (process, inside):
        barrier = there.barrier("meet", 2, timeout=LONG_S)
        with barrier:
            inside()
            process.kill()


def test_parties_whose_node_is_killed(cluster: LocalCluster) -> None:
    """One that waits there hears of it; those that live elsewhere meet without it."""
    with contextlib.ExitStack() as stack:
        here, second, third = (stack.enter_context(dlm.connect(cluster[name].url)) for name in "abc")

        def doomed() -> BaseException | None:
            try:
                here.barrier("meet", 2).wait()
            except dlm.DLMError as error:
                return error
            return None

        lost = Later(doomed)
        until(lambda: arrived(here, "meet"), "the party has arrived")
        cluster.kill("a")
        assert isinstance(lost.result(), (dlm.LockLost, dlm.NotConnected))
        waits = Later(lambda: second.barrier("meet", 2).wait(LONG_S))
        third.barrier("meet", 2).wait(LONG_S)
        waits.result()
