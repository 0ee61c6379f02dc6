"""All checkers of the ordered stream in one object, as ``SimCluster`` attaches them to its trace."""

from __future__ import annotations

from vsync.testing.attempt_rules import AttemptRules
from vsync.testing.evs_messages import MessageRules
from vsync.testing.evs_views import ViewRules
from vsync.testing.liveness_rules import LivenessRules
from vsync.testing.quorum_rules import QuorumRules
from vsync.testing.trace import Trace
from vsync.testing.violation import Violation
from vsync.types import Peer, QuorumConfig, Timing

__all__ = [
    "AttemptRules",
    "Checkers",
    "LivenessRules",
    "MessageRules",
    "QuorumRules",
    "Trace",
    "ViewRules",
    "Violation",
]


class Checkers:
    """EVS-E1..E24, E27, QUO-Q1/Q2, CHAIN-C7, K7 and K8, incremental: each event costs a few dictionary look-ups."""

    def __init__(
        self, trace: Trace, peers: tuple[Peer, ...], timing: Timing, quorum: QuorumConfig | None = None
    ) -> None:
        self.views = ViewRules()
        self.messages = MessageRules()
        self.quorum = QuorumRules(peers, quorum)
        self.attempts = AttemptRules()
        self.liveness = LivenessRules(timing, len(peers))
        for checker in (self.views, self.messages, self.quorum, self.attempts, self.liveness):
            checker.watch(trace)
