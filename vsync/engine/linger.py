"""Lingering: who alone has something to send, again and again, keeps the token for a moment.

A program that locks and unlocks in turn submits its next message when it hears of the last one. Passed on at once,
the token would be under way just then, and each message would wait for it to come round. So a member that was the
only one with something to send for some visits keeps it, for ``Timing.linger`` at most and no more packets than at
any visit, and sends what is submitted meanwhile as it comes. To the others this is one visit that takes longer.

It is not done at the next visits when nothing came of it or somebody else had something to send, and ends at once
when a layer above needs the token to go round (``Host.hurry``: the SAFE line).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vsync.engine.ring import PACKETS_PER_VISIT, Ring
from vsync.engine.states import State
from vsync.engine.timers import Timer
from vsync.wire import Token

if TYPE_CHECKING:
    from vsync.engine.engine import Engine

__all__ = ["hurry", "look", "more", "stay"]

STREAK = 2  #: visits in a row with traffic of this node alone, before it lingers


def look(e: Engine, ring: Ring, token: Token) -> None:
    """The token has come: was there anything to send for anybody else? Has this node something?"""
    others = token.seq != ring.last_seq or token.backlog != ring.backlog_told
    if others or not (e.queue or e.pieces):
        ring.streak = 0
    else:
        ring.streak += 1


def stay(e: Engine, ring: Ring, token: Token, new: int, now: int) -> bool:
    """Keep the token, if that is likely to pay. ``new``: so many packets have just been made."""
    if not ring.lingers_until and new and _pays(e, ring, token, new):
        ring.lingers_until = now + e.timing.linger
        e.count("token_linger")
    if now >= ring.lingers_until or ring.sent >= PACKETS_PER_VISIT or e.queue or e.pieces:
        return False
    ring.held = token
    e.timers.set(Timer.HOLD, ring.lingers_until)
    return True


def _pays(e: Engine, ring: Ring, token: Token, new: int) -> bool:
    return (
        e.state is State.OPERATIONAL
        and e.timing.linger > 0
        and not ring.alone
        and ring.streak >= STREAK
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
