"""Gather: agree on who the members of the next ring are.

Every node multicasts JOIN(proc, failed): whom it has heard of, and whom of them it holds for failed. Both sets
only grow, so this ends. When every node in ``proc - failed`` has sent exactly my two sets there is *consensus*,
and the one with the lowest id starts the commit token. Whoever has not agreed when the consensus timer expires is
moved to ``failed``; earlier, if nobody has heard it for a few join intervals while all others agree (``reach``).

The sets hold ``Member``s, that is (node, incarnation): a restarted node is someone else. Of two incarnations of a
node only the younger can be alive, so the elder is put into ``failed`` by everybody (``_close``), and "left and
came back" cannot be overlooked.

Differs from corosync: a JOIN that teaches nothing new does not restart the timers (else two nodes with different
convictions about a third keep each other from ever timing out); graceful leave is a JOIN with a flag.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from vsync.engine import claims, commit, contacts, merging, reach
from vsync.engine.states import Reason, State
from vsync.engine.timers import Timer
from vsync.types import Member
from vsync.wire import FrameType
from vsync.wire_forming import Join, Probe, Row, encode_join, encode_probe

if TYPE_CHECKING:
    from vsync.engine.engine import Engine

__all__ = [
    "Gathering",
    "enter",
    "on_consensus_timeout",
    "on_join",
    "on_join_interval",
    "on_peer_gone",
    "send_leave",
]


#: After these a node forms a ring of its own at once. Else it listens until the consensus timer: a starting node
#: would ring alone before it could hear anybody, and one that others hold for failed would form ring after ring at
#: the speed of their JOINs.
MAY_RING_ALONE = {
    Reason.NO_CONSENSUS, Reason.LEAVE, Reason.STALLED, Reason.ASKED, Reason.CONNECTION, Reason.SILENT, Reason.NODES,
}  # fmt: skip

SILENT_JOINS = 4  #: join intervals after which one that nobody hears is failed


class Gathering:
    """What a node knows while it looks for the members of the next ring."""

    __slots__ = ("agreed", "failed", "gave_me_up", "heard", "intervals", "introduced", "probed", "proc", "rows")

    def __init__(self, proc: Iterable[Member]) -> None:
        self.proc: set[Member] = set(proc)
        self.failed: set[Member] = set()  #: always a subset of proc
        self.heard: set[Member] = set()  #: who has sent a JOIN since the consensus timer last expired
        self.probed: set[Member] = set()  #: whose PROBE was heard: it lives, though it may hear nothing of me
        self.agreed: set[Member] = set()  #: who of proc - failed has sent exactly my sets
        self.gave_me_up: dict[Member, int] = {}  #: who failed me, and the last ring it had committed to then
        self.rows: dict[Member, Row] = {}  #: who hears whom, the newest row of each
        self.intervals = 0  #: join intervals since my sets last changed
        self.introduced: dict[int, int] = {}  #: by node: when a newcomer was last told of me

    def candidates(self) -> set[Member]:
        """Who the next ring would consist of."""
        return self.proc - self.failed


def enter(e: Engine, reason: Reason, now: int, **details: object) -> None:
    """(Re-)enter Gather. What was learned in a former attempt at this ring is kept; a new attempt begins."""
    claims.broke(e)
    e.forming = None
    e.enter(State.GATHER, reason, **details)
    e.gathering.proc.add(e.me)
    _close(e.gathering)
    e.gathering.agreed = {e.me}
    e.gathering.intervals = 0
    e.timers.set(Timer.CONSENSUS, now + e.timing.consensus)
    send_join(e, now)
    if reason in MAY_RING_ALONE or len(e.config.peers) == 1 or len(e.gathering.candidates()) > 1:
        _try_commit(e, now)


def send_join(e: Engine, now: int) -> None:
    """Tell every configured node what I think; again after the join interval."""
    e.count("memb_join_tx")
    e.broadcast(encode_join(e.header(FrameType.JOIN), _join(e, leaving=False)))
    # Jitter keeps nodes that started together from answering each other in step for ever.
    e.timers.set(Timer.JOIN, now + e.timing.join + e.jitter(e.timing.join // 5))


def on_join_interval(e: Engine, now: int) -> None:
    """The join timer: say it again; fail early whom nobody hears while all others agree."""
    g = e.gathering
    g.intervals += 1
    present = g.heard | {e.me}
    candidates = g.candidates()
    silent = reach.silent(candidates, frozenset(present & candidates), g.rows)
    if e.ring.alone:
        silent -= g.probed  # a ring that waits until I hear all of it; nobody waits for me
    if silent and g.intervals >= SILENT_JOINS and candidates - silent <= present:
        g.failed |= silent
        enter(e, Reason.SILENT, now, failed=sorted(m.node for m in silent))
    else:
        send_join(e, now)


def send_leave(e: Engine) -> None:
    """A graceful goodbye: the others need not wait for any timer."""
    e.broadcast(encode_join(e.header(FrameType.JOIN), _join(e, leaving=True)))


def on_join(e: Engine, sender: Member, join: Join, now: int) -> None:
    """A JOIN from an acceptable node: decide by state whether it concerns me, then learn from it."""
    if join.leaving:
        _on_leave(e, sender, now)
    elif sender in e.ring.member_set and join.ring_seq < e.ring.id.seq:
        e.count("rx_old_join")  # sent before its sender committed to this ring: what it says has been outlived
    elif e.state is State.GATHER:
        _on_join_in_gather(e, sender, join, now)
    elif e.state is State.OPERATIONAL and _concerns_operational(e, sender, join):
        returned = sender not in e.ring.member_set and sender.node in e.ring.others
        if not returned and _to_be_introduced(e, sender, join, now):
            return
        _learn(e, sender, join)
        reason = Reason.RESTARTED if returned else Reason.JOIN
        enter(e, reason, now, node=sender.node, evidence=join.why)
        if join.failed or not join.proc | {sender} <= e.ring.member_set:
            # It knows who is gone or comes, and all else is well: agreed, without waiting until it says so again.
            # After a lost token nobody knows what is broken: then its next JOIN will tell whom it hears.
            _note_agreement(e, sender, join, now)
    elif e.state in (State.COMMIT, State.RECOVERY) and _concerns_forming(e, sender, join):
        _learn(e, sender, join)
        enter(e, Reason.JOIN, now, node=sender.node)
        _note_agreement(e, sender, join, now)


def on_consensus_timeout(e: Engine, now: int) -> None:
    """Fail whom nobody hears, or who was removed; if I do not hear all, keep to my cell; else fail who disagrees.

    Who was removed goes by itself: it keeps nobody from agreeing with others.
    (All agree and yet there is no ring: the commit token was lost. Nobody is failed, and all are asked once more.)
    """
    g = e.gathering
    e.count("consensus_timeouts")
    candidates = g.candidates()
    present = frozenset(g.heard & candidates | {e.me})
    _note_row(e)
    failed = reach.silent(candidates, present, g.rows) or contacts.removed(e, candidates)
    if not failed and candidates - present:
        failed = candidates - reach.cell(e.me, candidates, g.rows)
        e.note(
            "cell", excluded=sorted(m.node for m in failed), unheard=sorted(m.node for m in candidates - present)
        )
    elif not failed:
        failed = candidates - g.agreed
    g.failed |= failed
    g.heard = set()
    enter(e, Reason.NO_CONSENSUS, now, failed=sorted(m.node for m in failed))


def on_peer_gone(e: Engine, node: int, evidence: str, now: int) -> None:
    """The transport says that a process is dead: its connection was reset and nobody listens any more.

    Need not be true for safety: one that lives after all comes back by a merge.
    """
    known = e.forming.ring.members if e.forming else e.gathering.candidates()
    member = next((m for m in known if m.node == node and m != e.me), None)
    if member is not None and e.state is not State.STOPPED:
        e.gathering.failed.add(member)
        e.gathering.heard.discard(member)
        e.gathering.rows.pop(member, None)
        enter(e, Reason.CONNECTION, now, node=node, evidence=evidence)


def _join(e: Engine, leaving: bool) -> Join:
    g = e.gathering
    _note_row(e)
    return Join(e.hello, e.ring_seq, frozenset(g.proc), frozenset(g.failed), leaving, dict(g.rows), e.why())


def _note_row(e: Engine) -> None:
    e.gathering.rows[e.me] = (e.counters["memb_join_tx"], frozenset(e.gathering.heard | {e.me}))


def _concerns_operational(e: Engine, sender: Member, join: Join) -> bool:
    """Whether a JOIN may break up a working ring (corosync cfbb021e: an irrelevant one must not)."""
    if merging.backing_off(e, sender):
        return False
    return sender in e.ring.member_set or e.me not in join.failed  # a stranger that gave me up will probe


def _to_be_introduced(e: Engine, sender: Member, join: Join, now: int) -> bool:
    """Whether a newcomer has yet to hear all of us: it is told of me, and the ring goes on meanwhile.

    A node that has just started often reaches others before they reach it: their connections to it have to be made
    anew. A ring that broke up at its first JOIN would stand still until then. One that never hears some of us gives
    up, forms a ring of its own and probes: then it is for ``reach`` to say who goes with whom.
    """
    wanted = e.ring.member_set - contacts.removed(e, e.ring.members)  # a newcomer may refuse the others
    if sender in e.ring.member_set or join.proc >= wanted:
        return False
    told = e.gathering.introduced.get(sender.node)
    if told is None or now - told >= e.timing.join // 2:  # not for each JOIN: many may gather at the same time
        e.gathering.introduced[sender.node] = now
        e.count("memb_merge_detect_tx")
        e.send(sender.node, encode_probe(e.header(FrameType.PROBE), Probe(e.hello, e.ring.id)))
    return True


def _concerns_forming(e: Engine, sender: Member, join: Join) -> bool:
    """Whether a JOIN tells that the ring being formed cannot come to be."""
    assert e.forming is not None
    ring = e.forming.ring
    if sender not in ring.member_set:
        return sender.node in ring.others  # restarted meanwhile; strangers are taken in later
    if join.ring_seq >= ring.id.seq:
        return True  # it had committed to this ring and gave it up
    news = not (join.proc <= e.gathering.proc and join.failed <= e.gathering.failed)
    return e.state is State.COMMIT and news  # it will not accept this commit token


def _on_join_in_gather(e: Engine, sender: Member, join: Join, now: int) -> None:
    g = e.gathering
    if sender in g.failed:
        if e.me in join.failed or join.ring_seq <= g.gave_me_up.get(sender, join.ring_seq):
            return
        g = e.gathering = Gathering((e.me,))  # it formed a ring without me and now asks anew: so do I
    if e.me in join.failed and sender not in e.ring.member_set:
        return  # a stranger that gave me up in its former attempt; to give it up in turn would go on for ever
    _hear(g, sender, join)
    if join.proc <= g.proc and join.failed <= g.failed:
        _note_agreement(e, sender, join, now)  # or it has yet to learn what I know
    elif _learn(e, sender, join):
        enter(e, Reason.JOIN, now, node=sender.node)
        _note_agreement(e, sender, join, now)  # it has all that I know, and need not say so again


def _note_agreement(e: Engine, sender: Member, join: Join, now: int) -> None:
    g = e.gathering
    same = join.proc == g.proc and join.failed == g.failed
    if e.state is State.GATHER and same and sender not in g.agreed:
        g.agreed.add(sender)
        _try_commit(e, now)


def _learn(e: Engine, sender: Member, join: Join) -> bool:
    """Unite the sender's sets with mine; whether that taught me anything."""
    g = e.gathering
    before = (len(g.proc), len(g.failed))
    _hear(g, sender, join)
    g.proc |= join.proc | {sender}
    if e.me in join.failed:
        g.failed.add(sender)  # we cannot be in one ring; it will not hear me say so
        g.gave_me_up[sender] = join.ring_seq
    elif sender in e.ring.member_set:
        g.failed |= join.failed  # a stranger's convictions about my ring are not believed
    g.failed.discard(e.me)
    _close(g)
    return (len(g.proc), len(g.failed)) != before


def _hear(g: Gathering, sender: Member, join: Join) -> None:
    g.heard.add(sender)
    for member, row in join.reach.items():
        if member not in g.rows or g.rows[member][0] < row[0]:
            g.rows[member] = row


def _close(g: Gathering) -> None:
    """Elder incarnations of a node are failed, as soon as a younger one is known."""
    youngest: dict[int, int] = {}
    for member in g.proc:
        youngest[member.node] = max(member.incarnation, youngest.get(member.node, 0))
    g.failed.update(m for m in g.proc if m.incarnation < youngest[m.node])
    g.proc |= g.failed


def _on_leave(e: Engine, sender: Member, now: int) -> None:
    e.leavers.add(sender)
    e.gathering.heard.add(sender)
    known = e.forming.ring.member_set if e.forming else e.gathering.candidates()
    if sender in known:
        e.gathering.failed.add(sender)
        enter(e, Reason.LEAVE, now, node=sender.node)


def _try_commit(e: Engine, now: int) -> None:
    candidates = e.gathering.candidates()
    if e.gathering.agreed >= candidates:
        e.note("consensus", members=sorted(m.node for m in candidates))
        if min(candidates) == e.me:
            commit.start(e, tuple(sorted(candidates)), now)
        else:  # the representative's commit token must come now; if not, we begin again
            e.timers.set(Timer.CONSENSUS, now + e.timing.consensus)
