"""Leader election: terms that rise, loss and re-election, and what observers see of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pytest

import dlm
from dlm.recipes import Election, Leader, Term
from dlm.recipes.election import _HEAD
from tests.vsync.support import until

InThread = Callable[[Callable[[], Any]], Any]
Check = Callable[[dlm.Client, str], None]
LONG_S = 20.0


class Candidate:
    """A candidate in a thread of its own that leads until it is told or loses."""

    def __init__(self, election: Election, in_thread: InThread) -> None:
        self.election = election
        self.terms: list[Term] = []
        self.go_on = threading.Event()  #: the body of the loop may end
        self.thread = in_thread(self._run)

    def _run(self) -> None:
        for term in self.election:
            self.terms.append(term)
            while not term.lost.wait(0.01) and not self.go_on.is_set():
                pass
            self.go_on.clear()

    def leads(self, times: int = 1) -> Term:
        until(lambda: len(self.terms) >= times, f"term {times} of {self.election.identity}")
        return self.terms[-1]


class Observer:
    """Collects what ``changes`` gives; ``next`` is the next of it."""

    def __init__(self, election: Election, in_thread: InThread) -> None:
        self._seen: SimpleQueue[Leader | None] = SimpleQueue()
        self.thread = in_thread(lambda: [self._seen.put(leader) for leader in election.changes()])

    def next(self) -> Leader | None:
        return self._seen.get(timeout=LONG_S)

    def until(self, identity: str | None) -> Leader | None:
        """The changes that come so fast may be seen as one: skip to this one."""
        while (leader := self.next()) is not None or identity is not None:
            if leader is not None and leader.identity == identity:
                break
        return leader


def session(election: Election) -> int:
    number: int = election._session.channel.welcome["session"]
    return number


def waiting(election: Election, count: int) -> None:
    until(lambda: len(election.candidates()) == count, f"{count} candidates")


def test_one_leads_and_the_next_in_line_follows(
    three: Any, name: str, in_thread: InThread, nothing_left: Check
) -> None:
    first, second, third = (three.client(node).election(name, node) for node in "abc")
    term = first.campaign(LONG_S)
    assert term.valid
    assert term.identity == "a"
    assert first.leader() == third.leader() == Leader("a", term.fence, 1, session(first))
    b = in_thread(lambda: second.campaign(LONG_S))
    waiting(third, 1)
    c = in_thread(lambda: third.campaign(LONG_S))
    waiting(first, 2)
    assert [candidate.node for candidate in first.candidates()] == [2, 3]
    term.resign()
    term.resign()  # once is enough
    assert term.lost.wait(0)
    assert term.lost.reason == "resigned"
    later = b.outcome()
    assert later.fence > term.fence
    assert first.leader() == Leader("b", later.fence, 2, session(second))
    with later:
        later.check()
    last = c.outcome()
    assert last.fence > later.fence
    last.resign()
    assert second.leader() is None
    nothing_left(three.client("a"), name)


def test_the_loop_is_entered_as_leader_and_goes_on(three: Any, name: str, in_thread: InThread) -> None:
    one = Candidate(three.client("a").election(name, "one"), in_thread)
    assert one.leads().valid
    two = Candidate(three.client("b").election(name, "two"), in_thread)
    waiting(one.election, 1)
    one.go_on.set()
    assert two.leads().fence > one.terms[0].fence
    assert one.terms[0].lost.reason == "resigned"
    waiting(two.election, 1)  # behind
    two.go_on.set()
    assert one.leads(2).fence > two.terms[0].fence
    two.election.resign()  # while it waits
    assert two.thread.outcome() is None
    one.election.resign()  # while it leads
    assert one.thread.outcome() is None
    assert one.terms[-1].lost.reason == "resigned"
    assert one.election.leader() is None


def test_elections_of_two_lockspaces_over_one_session(three: Any, name: str, in_thread: InThread) -> None:
    """Group events of a session go to one place: the bells of both must be found there."""
    locks, others = three.client("a"), three.client("b")
    clients = locks, locks.space(f"space-{name}")
    elections = [client.election(name, "here") for client in clients]
    rivals = [others.election(name, "there"), others.space(f"space-{name}").election(name, "there")]
    observers = [Observer(election, in_thread) for election in elections]
    for observer in observers:
        assert observer.next() is None
    for rival, observer in zip(rivals, observers, strict=True):
        with rival.campaign(LONG_S) as term:
            assert observer.until("there") == Leader("there", term.fence, 2, session(rival))
        observer.until(None)


def test_break_and_exceptions_end_the_term(three: Any, name: str, nothing_left: Check) -> None:
    locks = three.client("a")
    election = locks.election(name)
    for term in election:
        assert term.valid
        break
    assert term.lost.reason == "resigned"
    with pytest.raises(ZeroDivisionError):
        for again in election:
            term = again
            raise ZeroDivisionError
    assert term.lost.reason == "resigned"
    with pytest.raises(dlm.NotHeld), term:
        pass
    nothing_left(locks, name)


def test_a_try_and_a_time_out(three: Any, name: str, nothing_left: Check) -> None:
    one, two = three.client("a").election(name), three.client("b").election(name)
    with one.campaign(0) as term:
        for timeout in (0, 0.05):
            with pytest.raises(dlm.LockTimeout):
                two.campaign(timeout)
        assert term.valid
        waiting(one, 0)
    with two.campaign(LONG_S):
        pass
    nothing_left(three.client("c"), name)


def test_a_client_that_ends_is_followed(three: Any, name: str, in_thread: InThread) -> None:
    ends = three.client("a")
    one = Candidate(ends.election(name, "one"), in_thread)
    old = one.leads()
    two = Candidate(three.client("b").election(name, "two"), in_thread)
    waiting(two.election, 1)
    ends.close()
    assert two.leads().fence > old.fence
    assert old.lost.reason == "session_closed"
    with pytest.raises(dlm.NotConnected):
        one.thread.outcome()
    two.election.resign()


def test_observers_are_told_without_asking(three: Any, name: str, in_thread: InThread) -> None:
    clients = [three.client(node) for node in "abc"]
    watcher = Observer(clients[2].election(name), in_thread)
    assert watcher.next() is None
    term = clients[0].election(name, "one").campaign(LONG_S)
    seen = watcher.next()
    assert seen is not None
    assert (seen.identity, seen.term) == ("one", term.fence)
    late = Observer(clients[1].election(name), in_thread)
    assert late.next() == seen
    term.resign()
    assert watcher.next() is late.next() is None
    other = clients[1].election(name, "two").campaign(LONG_S)  # a leader and an observer in one session
    found = watcher.next()
    assert found is not None
    assert (found.identity, found.term) == ("two", other.fence)
    assert late.next() == found
    clients[1].close()  # a leader that ends without a word
    assert watcher.next() is None
    assert clients[0].election(name).leader() is None
    clients[2].close()
    with pytest.raises(dlm.NotConnected):
        watcher.thread.outcome()


def test_a_former_leader_leads_no_more(three: Any, name: str) -> None:
    """… also where the value block stays, as somebody keeps the lock."""
    watching, resigns, dies = (three.client(node) for node in "abc")
    with watching.acquire(f"{name}/leader", dlm.Mode.NL):
        resigns.election(name, "resigns").campaign(LONG_S).resign()
        assert watching.election(name).leader() is None
        dies.election(name, "dies").campaign(LONG_S)
        assert watching.election(name).leader() is not None
        dies.close()
        until(lambda: watching.election(name).leader() is None, "nobody leads")


def test_observers_believe_only_who_is_there(three: Any, name: str, in_thread: InThread) -> None:
    """The news that a process has died may come before the end of its locks."""
    locks = three.client("a")
    with locks.acquire(f"{name}/leader", dlm.Mode.EX, LONG_S) as ghost:
        ghost.convert(dlm.Mode.EX, value=_HEAD.pack(1, 3, 4711) + b"ghost")
        found = locks.election(name).leader()
        assert found is not None
        assert found.identity == "ghost"
        assert Observer(locks.election(name), in_thread).next() is None


def test_a_resignation_that_meets_the_election(three: Any, name: str, nothing_left: Check) -> None:
    election = three.client("a").election(name)
    bells = election._client._bells()
    send = bells.send

    def resigned_meanwhile(group: str, wait: bool) -> None:
        election._resigned += 1  # by a thread that does not see the term yet
        send(group, wait)

    bells.send = resigned_meanwhile  # type: ignore[method-assign]
    with pytest.raises(dlm.LockCancelled):
        election.campaign(LONG_S)
    nothing_left(three.client("a"), name)


def test_a_loss_before_the_loop_is_entered_is_no_end(
    three: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    election = three.client("a").election(name)
    win, tries = election._win, []

    def lost_once(*args: Any) -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise dlm.LockLost("lost", reason="evicted")
        return win(*args)

    monkeypatch.setattr(election, "_win", lost_once)
    for term in election:
        assert term.valid
        break
    assert len(tries) == 2


def test_observing_is_silent_while_nothing_changes(three: Any, name: str, in_thread: InThread) -> None:
    """Comings and goings of others are no reason to ask again."""
    locks = three.client("a")
    election = locks.election(name)
    watcher = Observer(election, in_thread)
    assert watcher.next() is None
    asked = []
    look = election._look
    election._look = lambda: asked.append(1) or look()  # type: ignore[method-assign]
    for node in "bc":
        other = Observer(three.client(node).election(name), in_thread)
        assert other.next() is None
    three.end_clients()
    with pytest.raises(dlm.NotConnected):
        watcher.thread.outcome()
    assert len(asked) <= 2  # for the clients that ended; not for the two that came


def test_two_in_one_client_share_the_bell(three: Any, name: str, in_thread: InThread) -> None:
    locks = three.client("a")
    with locks.election(name, "x").campaign(LONG_S):
        assert Observer(locks.election(name), in_thread).until("x") is not None
        again = in_thread(lambda: locks.election(name, "y").campaign(LONG_S))
        waiting(locks.election(name), 1)
    again.outcome().resign()
    for _ in range(3):  # leaving and joining follow each other
        locks.election(name, "z").campaign(LONG_S).resign()


def test_resigning_while_nobody_campaigns_is_nothing(three: Any, name: str) -> None:
    election = three.client("a").election(name)
    election.resign()
    for term in election:
        assert term.valid
        election.resign()
    assert term.lost.is_set()


def test_a_leader_that_is_cut_off(fragile: Any, name: str, in_thread: InThread) -> None:
    """It knows before anybody else leads; observers on either side see it; when it is back it stands in line."""
    c = Candidate(fragile.client("c").election(name, "c"), in_thread)
    old = c.leads()
    a = Candidate(fragile.client("a").election(name, "a"), in_thread)
    waiting(a.election, 1)
    there, here = (Observer(fragile.client(node).election(name), in_thread) for node in "bc")
    assert there.until("c") == here.until("c")
    fragile.cut_off(3)
    new = a.leads()
    assert not old.valid
    assert old.lost.is_set()
    assert new.fence > old.fence
    assert there.until("a") == Leader("a", new.fence, 1, session(a.election))
    assert here.until(None) is None
    fragile.hub.heal()
    fragile.wait_members(3)
    assert here.until("a") is not None
    waiting(a.election, 1)
    a.election.resign()
    assert c.leads(2).fence > new.fence
    c.election.resign()


def test_what_cannot_be_meant(three: Any) -> None:
    locks = three.client("a")
    with pytest.raises(dlm.InvalidRequest, match="name"):
        locks.election("x" * 58)
    with pytest.raises(dlm.InvalidRequest, match="identity"):
        locks.election("x", "y" * 1001)
    election = locks.election("x" * 57, "y" * 1000)
    term = election.campaign(LONG_S)
    assert locks.election("x" * 57).leader() == Leader("y" * 1000, term.fence, 1, session(election))
    assert repr(term).endswith("leading>")
    term.resign()
    assert repr(term).endswith("resigned>")
    assert repr(locks.election("x", "y")) == "<dlm.Election 'x' identity='y'>"
