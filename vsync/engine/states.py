"""The four states of Totem, the legal moves between them, and why a node gives up a ring.

Which timers are alive in which state is data, so that no branch can forget one: ``Engine.enter`` stops all others.

=============  ==========================================================  =================================
state          what goes on                                                left for
=============  ==========================================================  =================================
GATHER         JOINs go round until all name the same members              COMMIT
COMMIT         the commit token goes round and collects entries            RECOVERY, GATHER
RECOVERY       the new ring carries what somebody misses of the old one    OPERATIONAL, GATHER
OPERATIONAL    the token goes round; messages are ordered and delivered    GATHER
=============  ==========================================================  =================================
"""

from __future__ import annotations

from enum import Enum

from vsync.engine.timers import Timer

__all__ = ["TIMERS", "TRANSITIONS", "Reason", "State"]


class State(Enum):
    """Where a node is in the membership protocol."""

    GATHER = "gather"
    COMMIT = "commit"
    RECOVERY = "recovery"
    OPERATIONAL = "operational"
    STOPPED = "stopped"


#: Legal moves. GATHER to GATHER is a new attempt with more knowledge.
TRANSITIONS = {
    State.GATHER: {State.GATHER, State.COMMIT, State.STOPPED},
    State.COMMIT: {State.RECOVERY, State.GATHER, State.STOPPED},
    State.RECOVERY: {State.OPERATIONAL, State.GATHER, State.STOPPED},
    State.OPERATIONAL: {State.GATHER, State.STOPPED},
    State.STOPPED: set(),
}

#: Timers that may run in a state.
TIMERS = {
    State.GATHER: {Timer.JOIN, Timer.CONSENSUS},
    State.COMMIT: {Timer.TOKEN, Timer.RETRANSMIT},
    State.RECOVERY: {Timer.TOKEN, Timer.RETRANSMIT},
    State.OPERATIONAL: {Timer.TOKEN, Timer.RETRANSMIT, Timer.HOLD, Timer.DELIVER, Timer.MERGE},
    State.STOPPED: set(),
}


class Reason(Enum):
    """Why a node entered Gather: the answer to "why did the view change?"."""

    START = "this node started"
    TOKEN_LOST = "token lost"
    COMMIT_LOST = "commit token lost"
    RECOVERY_LOST = "token lost during recovery"
    NO_CONSENSUS = "consensus timeout"
    JOIN = "another node asked to form a ring"
    RESTARTED = "a member restarted"
    LEAVE = "a member left"
    CONNECTION = "the connection to a member broke"
    SILENT = "nobody hears a node"
    MERGE = "another ring was found"
    STALLED = "a member stopped receiving"
    ASKED = "asked by a layer above"
    NODES = "the set of nodes was changed"
