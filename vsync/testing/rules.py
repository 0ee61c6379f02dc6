"""Nested faults: something breaks at the k-th frame of one type, sent or received in one state.

A *cell* is (type, state, side, action). Which cells cannot occur, and why, is data: ``NEVER_SENT`` is checked at
every frame of every run (``check_sent``, rule STEP), so that the table cannot be wrong unnoticed. Every other cell
is met (``python -m vsync.testing --coverage``; ``tests/vsync/test_sim_steps.py`` runs until all have been).

The state of a frame that is sent is the one in which the engine made it, not the one to which the input led; of one
that is received, the one in which it is handed to the core.

Some cells are rare by nature – a node is in Commit for milliseconds – so a rule may *lure*: when a node comes to
its state, the network brings it a copy of an earlier frame of the rule's type, or the node is asked to leave.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from vsync.testing.violation import Violation
from vsync.wire_forming import decode_join

__all__ = [
    "ACTIONS",
    "CELLS",
    "NEVER_SENT",
    "POINTLESS",
    "SIDES",
    "STATES",
    "TYPES",
    "TYPE_AT",
    "Cell",
    "Rule",
    "check_sent",
    "draw_rule",
]

Cell = tuple[str, str, str, str]  #: type, state, side, action

#: As in ``vsync.wire.FrameType``, from 1 on. (NEWS is no step of the ring, and sent again whatever becomes of it.)
TYPES = ("DATA", "TOKEN", "JOIN", "COMMIT", "PROBE", "CANCEL")
STATES = ("gather", "commit", "recovery", "operational")
SIDES = ("sent", "received")
ACTIONS = ("crash", "cut", "drop", "duplicate", "pause", "leave")
TYPE_AT = 3  #: the byte of a frame that holds its type

_NO_RING = "only a ring's token lets packets and tokens out, and no ring is active (Engine.active_ring)"
_NO_FORMING = "a commit token belongs to a ring in the making; here there is none (Engine.forming)"
_MERGE = "the merge timer runs in Operational only (states.TIMERS)"
_WAKE = "wake() does nothing but in Operational: no token is held elsewhere"

#: What no node ever sends, and why. Everything can be *received* in any state: links delay and duplicate.
NEVER_SENT = {
    ("DATA", "gather"): _NO_RING,
    ("DATA", "commit"): _NO_RING,
    ("TOKEN", "gather"): _NO_RING,
    ("TOKEN", "commit"): _NO_RING,
    ("COMMIT", "gather"): _NO_FORMING,
    ("COMMIT", "operational"): _NO_FORMING,
    ("PROBE", "gather"): _MERGE,
    ("PROBE", "commit"): _MERGE,
    ("PROBE", "recovery"): _MERGE,
    ("CANCEL", "gather"): _WAKE,
    ("CANCEL", "commit"): _WAKE,
}

_TOLD_FIRST = "layers above are told of a view before the note that the ring is Operational"
_GOODBYE = "outside Gather a JOIN is a goodbye: the process ends with this frame"

#: What can occur but has no effect, and why.
POINTLESS: dict[Cell, str] = {
    ("JOIN", state, "sent", action): _GOODBYE
    for state in ("commit", "recovery", "operational")
    for action in ("pause", "leave")
} | {("CANCEL", "recovery", "sent", action): _TOLD_FIRST for action in ACTIONS}

#: All that can occur.
CELLS: tuple[Cell, ...] = tuple(
    (kind, state, side, action)
    for kind in TYPES
    for state in STATES
    for side in SIDES
    for action in ACTIONS
    if not (side == "sent" and (kind, state) in NEVER_SENT) and (kind, state, side, action) not in POINTLESS
)

_JOIN = TYPES.index("JOIN") + 1
_FORBIDDEN = {(TYPES.index(kind) + 1, state): why for (kind, state), why in NEVER_SENT.items()}


def check_sent(frame: bytes, state: str, node: int) -> None:
    """STEP: nobody sends what he cannot have to say in this state."""
    kind = frame[TYPE_AT]
    why = _FORBIDDEN.get((kind, state))
    if kind == _JOIN and state != "gather" and not decode_join(frame).leaving:
        why = _GOODBYE
    if why is not None:
        raise Violation("STEP", f"node {node} sent {TYPES[kind - 1]} in {state}, but {why}")


@dataclass(slots=True)
class Rule:
    """Do ``action`` at the ``left``-th frame of type ``kind`` that a node in ``state`` sends or receives."""

    kind: int
    state: str
    side: str
    action: str
    left: int
    node: int | None = None  #: only at this node
    lures: int = 0  #: how often the frame is helped to come about

    def fires(self, frame: bytes, state: str, side: str, node: int) -> bool:
        """Whether this is the frame; counts it if it could have been."""
        if side != self.side or frame[TYPE_AT] != self.kind or state != self.state:
            return False
        if self.node is not None and node != self.node:
            return False
        self.left -= 1
        return self.left == 0

    @property
    def name(self) -> Cell:
        """Its cell in the table of coverage."""
        return (TYPES[self.kind - 1], self.state, self.side, self.action)

    @property
    def takes_a_leave(self) -> bool:
        """Whether only a node that leaves sends such a frame."""
        return self.name[:3] in _LEAVE_SENDS


_LEAVE_SENDS = {("JOIN", state, "sent") for state in ("commit", "recovery", "operational")}


def draw_rule(rng: Random, nodes: int) -> Rule:
    """Any cell that can occur, all alike; at the first such frame or a later one."""
    kind, state, side, action = rng.choice(CELLS)
    left = rng.choice([1, 1, 2, 3, 5, 10])
    return Rule(
        kind=TYPES.index(kind) + 1,
        state=state,
        side=side,
        action=action,
        left=left,
        node=rng.randint(1, nodes) if rng.random() < 0.3 else None,
        lures=rng.choice([0, left]),
    )
