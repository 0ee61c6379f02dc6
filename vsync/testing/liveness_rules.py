"""EVS-E27: no livelock. Nodes that keep each other from ever agreeing show it by changing views without end."""

from __future__ import annotations

from collections import deque

from vsync.testing.trace import Trace, Viewed
from vsync.testing.violation import Violation
from vsync.types import Timing

__all__ = ["LivenessRules"]

MOST = 25  #: regular views of one process within one token timeout; honest storms of the nemesis stay below ten


class LivenessRules:
    """Counts view changes of each node within the last token timeout."""

    def __init__(self, timing: Timing) -> None:
        self._window = timing.token
        self._recent: dict[int, deque[int]] = {}

    def watch(self, trace: Trace) -> None:
        """Subscribe to what this checker needs."""
        trace.subscribe(Viewed, self.on_viewed)

    def on_viewed(self, event: Viewed) -> None:
        """Count regular views."""
        if event.view.transitional:
            return
        recent = self._recent.setdefault(event.who.node, deque())
        recent.append(event.time)
        while recent[0] < event.time - self._window:
            recent.popleft()
        if len(recent) > MOST:
            raise Violation(
                "EVS-E27",
                f"node {event.who.node} has installed {len(recent)} views within {self._window / 1000:g} ms",
            )
