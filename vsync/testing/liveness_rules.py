"""EVS-E27: no livelock. Nodes that keep each other from ever agreeing show it by changing views without end.

What happens to nodes and links (a process starts, ends, stops, goes on; a cut, a healing, a rumour) is counted,
too. Each such *disturbance* may cost a node one view, at once or a token timeout later; and when all links work
again the others may come back to it one by one (``views_to_merge``).
"""

from __future__ import annotations

from collections import deque

from vsync.testing.trace import Trace, Viewed
from vsync.testing.violation import Violation
from vsync.types import Timing

__all__ = ["LivenessRules", "views_to_merge"]


def views_to_merge(nodes: int) -> int:
    """Regular views of one node until all are in one ring, after the last disturbance.

    One for the change that was under way then; one for each other node that comes back, and one more if somebody
    who had held it for failed leaves it out again.
    """
    return 2 * nodes - 1


class LivenessRules:
    """Counts view changes of each node within the last token timeout, and disturbances within the last two."""

    def __init__(self, timing: Timing, nodes: int) -> None:
        self._least = views_to_merge(nodes)
        self.closest = (0, self._least)  #: views and bound, where a run came closest to it
        self._window = timing.token
        self._recent: dict[int, deque[int]] = {}
        self._disturbances: deque[int] = deque()

    def watch(self, trace: Trace) -> None:
        """Subscribe to what this checker needs."""
        trace.subscribe(Viewed, self.on_viewed)

    def disturbed(self, now: int) -> None:
        """Something happens to a node or a link. What happens at one instant counts once."""
        if not self._disturbances or self._disturbances[-1] != now:
            self._disturbances.append(now)

    def on_viewed(self, event: Viewed) -> None:
        """Count regular views."""
        if event.view.transitional:
            return
        recent = self._recent.setdefault(event.who.node, deque())
        recent.append(event.time)
        while recent[0] < event.time - self._window:
            recent.popleft()
        while self._disturbances and self._disturbances[0] < event.time - 2 * self._window:
            self._disturbances.popleft()
        bound = self._least + len(self._disturbances)
        if len(recent) * self.closest[1] > self.closest[0] * bound:
            self.closest = (len(recent), bound)
        if len(recent) > bound:
            raise Violation(
                "EVS-E27",
                f"node {event.who.node} has installed {len(recent)} views within {self._window / 1000:g} ms, "
                f"more than {bound} after {len(self._disturbances)} disturbances",
            )
