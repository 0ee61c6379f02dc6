"""Lingering: who alone has something to send, again and again, keeps the token for a moment.

A program that locks and unlocks in turn submits its next message when it hears of the last one. Passed on at once,
the token would be under way just then, and each message would wait for it to come round. So a member that was the
only one to send for some visits keeps it, also at a visit at which nothing waits if its last message is not long
ago. For ``Timing.linger`` at most, and no more packets than at any visit, it sends what is submitted meanwhile as
it comes. To the others this is one visit that takes longer.

All members see whose packets come. So each knows who may be keeping the token, and asks for it with a CANCEL when
it has something to send itself; a lost one costs the rest of that time. The token goes on at once, too, when a
layer above needs it to go round (``Host.hurry``: the SAFE line).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vsync.engine.ring import PACKETS_PER_VISIT, Ring
from vsync.engine.states import State
from vsync.engine.timers import Timer
from vsync.wire import Token

if TYPE_CHECKING:
    from vsync.engine.engine import Engine

__all__ = ["hurry", "likely", "look", "more", "stay"]

STREAK = 2  #: visits with packets of the last talker and nobody else, before it lingers


def look(ring: Ring, token: Token) -> None:
    """The token has come: has anybody sent something since it last did, this member included?"""
    if token.seq != ring.last_seq or ring.sent_last_visit:
        ring.streak += 1


def likely(ring: Ring) -> bool:
    """Whether whoever sent the last packet may linger: it was the only one for some visits."""
    return ring.streak >= STREAK


def stay(e: Engine, ring: Ring, token: Token, new: int, now: int) -> bool:
    """Keep the token, if that is likely to pay. ``new``: so many packets have just been made."""
    if new:
        ring.spoke = now
    until = ring.lingers_until or ring.spoke + e.timing.linger
    if now >= until or ring.sent >= PACKETS_PER_VISIT or e.queue or e.pieces:
        return False
    if not ring.lingers_until:
        if not _pays(e, ring, token, new):
            return False
        ring.lingers_until = until
        e.count("token_linger")
    ring.held = token
    e.timers.set(Timer.HOLD, until)
    return True


def _pays(e: Engine, ring: Ring, token: Token, new: int) -> bool:
    return (
        e.state is State.OPERATIONAL
        and not ring.alone
        and ring.keeps
        and likely(ring)
        and token.backlog == ring.backlog_told  # nothing waits for others
        and not token.requests
        and ring.aru == token.seq
        and ring.delivered == ring.aru - new  # no SAFE packet waits for the token to go round
    )


def more(e: Engine, now: int) -> None:
    """Something was submitted. It goes out with whatever else is submitted at the same time."""
    e.timers.set(Timer.HOLD, now)


def hurry(e: Engine, now: int) -> None:
    """Somebody needs the token to go round."""
    ring = e.ring
    ring.streak = 0
    if ring.lingers_until and e.state is State.OPERATIONAL:
        ring.lingers_until = now
        e.timers.set(Timer.HOLD, now)
