"""Nested faults: something breaks at the k-th frame of one type, sent or received in one state.

A rule waits until it fires once. Over many seeds every type meets every state (``python -m vsync.testing
--coverage``). The state is the one that the input led to: a node that sends the token and enters Operational in one
step sends it in Operational.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

__all__ = ["ACTIONS", "SIDES", "STATES", "TYPES", "Rule", "draw_rule"]

TYPES = ("DATA", "TOKEN", "JOIN", "COMMIT", "PROBE", "CANCEL")  #: as in ``vsync.wire.FrameType``, from 1 on
STATES = ("gather", "commit", "recovery", "operational")
SIDES = ("sent", "received")
ACTIONS = ("crash", "cut", "drop", "duplicate", "pause")
_TYPE_AT = 3  #: the byte of a frame that holds its type


@dataclass(slots=True)
class Rule:
    """Do ``action`` at the ``left``-th frame of type ``kind`` that a node in ``state`` sends or receives."""

    kind: int
    state: str
    side: str
    action: str
    left: int
    node: int | None = None  #: only at this node

    def fires(self, frame: bytes, state: str, side: str, node: int) -> bool:
        """Whether this is the frame; counts it if it could have been."""
        if side != self.side or frame[_TYPE_AT] != self.kind or state != self.state:
            return False
        if self.node is not None and node != self.node:
            return False
        self.left -= 1
        return self.left == 0

    @property
    def name(self) -> tuple[str, str, str, str]:
        """Its line in the table of coverage."""
        return (TYPES[self.kind - 1], self.state, self.side, self.action)


def draw_rule(rng: Random, nodes: int) -> Rule:
    """Any type in any state; the frames of a membership change more often than those of every day."""
    kind = rng.choice([1, 2, 3, 3, 4, 4, 5, 6])
    state = rng.choice(STATES)
    return Rule(
        kind=kind,
        state=state,
        side=rng.choice(SIDES),
        action=rng.choice(ACTIONS),
        left=rng.choice([1, 1, 2, 3, 5, 10]),
        node=rng.randint(1, nodes) if rng.random() < 0.3 else None,
    )
