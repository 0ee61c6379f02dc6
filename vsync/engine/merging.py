"""Merging: how rings find each other, and whom a ring leaves in peace for a while.

The representative of a ring probes for the configured nodes that are not in it. Who is alive and yet could not be
taken in is tried again after a delay that doubles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vsync.engine import contacts, gather
from vsync.engine.outputs import Send
from vsync.engine.states import Reason, State
from vsync.engine.timers import Timer
from vsync.types import Member
from vsync.wire import FrameType
from vsync.wire_forming import Probe, encode_probe

if TYPE_CHECKING:
    from vsync.engine.engine import Engine

__all__ = ["MAX_BACKOFF", "back_off", "backing_off", "on_probe", "probe"]

MAX_BACKOFF = 4  #: token timeouts between two attempts at taking in one that cannot be taken in
REMEMBERED = 8  #: a back-off is forgotten when so many times its length have passed without another one


def probe(e: Engine, now: int) -> None:
    """The merge timer: is anybody out there?"""
    refused = {m.node for m, (until, _) in e.backoff.items() if now < until}  # it would break up its ring
    strangers = tuple(n for n in e.others() if n not in e.ring.by_node and n not in refused)
    if strangers and e.ring.representative == e.me and not contacts.silent(e):
        e.count("memb_merge_detect_tx")
        frame = encode_probe(e.header(FrameType.PROBE), Probe(e.hello, e.ring.id))
        e.output(Send(strangers, frame))
        contacts.remind(e, strangers)
    e.timers.set(Timer.MERGE, now + e.timing.merge)


def on_probe(e: Engine, sender: Member, now: int) -> None:
    """Somebody of another ring is."""
    looking = e.state is State.GATHER and e.ring.alone  # then it meets all of the other ring or nobody
    if not looking and backing_off(e, sender):
        return
    e.gathering.probed.add(sender)
    if (e.state is State.OPERATIONAL and sender not in e.ring.member_set) or (
        e.state is State.GATHER and sender not in e.gathering.proc
    ):
        e.gathering.proc.add(sender)
        gather.enter(e, Reason.MERGE, now, node=sender.node)


def backing_off(e: Engine, member: Member) -> bool:
    """Whether it is too early to try again with one that could not be taken into the ring."""
    until, _ = e.backoff.get(member, (0, 0))
    if e.now < until and member not in e.ring.member_set:
        e.count("merge_backoff")
        return True
    return False


def back_off(e: Engine, now: int) -> None:
    """Who is alive but could not be taken in is tried again after a delay that doubles: no storm of views.

    It is remembered for a while after the return: one that joins well and then never receives (a path that
    loses large packets, say) would else break up the ring once a second.
    """
    e.backoff = {m: (u, d) for m, (u, d) in e.backoff.items() if now < u + REMEMBERED * d}
    excluded = sorted(_excluded(e))
    for member in excluded:
        last = e.backoff.get(member, (0, e.timing.consensus // 2))[1]
        delay = min(2 * last, MAX_BACKOFF * e.timing.token)
        e.backoff[member] = (now + delay, delay)
        e.note("excluded", node=member.node, again_in_ms=delay // 1000)
    contacts.inform(e, tuple(member.node for member in excluded))  # perhaps it heard me and does not talk to me


def _excluded(e: Engine) -> set[Member]:
    """Who is alive and yet not in the ring that has just come to be: to be tried again, but not at once."""
    g = e.gathering
    alive = {member for _, heard in g.rows.values() for member in heard} | g.heard | g.probed
    return (g.failed & alive) - e.ring.member_set - e.leavers
