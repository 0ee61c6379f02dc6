"""What must hold of locks, judged from outside the lock manager.

GRANT-Q2  At no instant of true time are two incompatible handles both valid.
FENCE-K14 Fences of incompatible grants of a name rise in true time, and none is given twice.
ANSWER    Every operation has exactly one answer (K9), and after healing it comes.
CHAIN-K8  A primary view goes on with the state of the last one before it, or with none.
TABLE     Full members have equal tables at equal positions (K2); the table's own invariants hold.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from typing import TYPE_CHECKING

from dlm.modes import COMPATIBLE, MODES, NAMES
from dlm.recovery import announcements, survivors
from dlm.testing.clients import Handle
from vsync.testing.violation import Violation
from vsync.types import RingId, View

if TYPE_CHECKING:
    from dlm.service import DlmService

__all__ = ["ChainRules", "FenceRules", "HolderRules", "TableRules"]


class HolderRules:
    """GRANT-Q2. Asked whenever a handle becomes valid: at a grant, and when a lapsed lease goes on."""

    def __init__(self) -> None:
        self._believed: dict[bytes, list[Handle]] = {}

    def granted(self, handle: Handle) -> None:
        """A client was told that it holds ``handle.mode``; its page is as it was written last."""
        others = self._believed.setdefault(handle.name, [])
        others[:] = [other for other in others if not other.over]
        if handle not in others:
            others.append(handle)
        self.check(handle)

    def check(self, handle: Handle) -> None:
        """Nobody else has a valid incompatible handle at this instant. Raises ``Violation``."""
        if not handle.valid():
            return
        for other in self._believed.get(handle.name, ()):
            if other is not handle and not COMPATIBLE[other.mode][handle.mode] and other.valid():
                raise Violation(
                    "GRANT-Q2",
                    f"{handle.name!r}: {handle} holds {NAMES[handle.mode]} with fence {_f(handle.fence)} while "
                    f"{other} holds {NAMES[other.mode]} with fence {_f(other.fence)}",
                )


class FenceRules:
    """FENCE-K14. Only grants that are valid when they are told count: a late answer may be out of date."""

    def __init__(self) -> None:
        self._highest: dict[bytes, list[int]] = {}  # per mode
        self._given: dict[bytes, dict[int, Handle]] = {}

    def granted(self, handle: Handle) -> None:
        """A client was told a mode and a fence. Raises ``Violation``."""
        given = self._given.setdefault(handle.name, {})
        first = given.setdefault(handle.fence, handle)
        if first is not handle:
            raise Violation(
                "FENCE-K14", f"{handle.name!r}: fence {_f(handle.fence)} for {handle} was given to {first}"
            )
        if not handle.valid():
            return
        highest = self._highest.setdefault(handle.name, [0] * len(MODES))
        for mode in MODES:
            if not COMPATIBLE[mode][handle.mode] and highest[mode] > handle.fence:
                raise Violation(
                    "FENCE-K14",
                    f"{handle.name!r}: {handle} is granted {NAMES[handle.mode]} with fence "
                    f"{_f(handle.fence)}, after {NAMES[mode]} with {_f(highest[mode])}",
                )
        highest[handle.mode] = max(highest[handle.mode], handle.fence)


class ChainRules:
    """CHAIN-K8: nobody goes on with an old state after a newer one was in force."""

    def __init__(self) -> None:
        self._went_on_with: dict[RingId, RingId] = {}  # by primary view; not those that began empty
        self._views: list[RingId] = []

    def in_force(self, view: View) -> None:
        """Somebody works in this primary view. Raises ``Violation``."""
        states = [said.ring for _, said in announcements(view).values() if said.complete]
        if survivors(view):
            self._went_on_with[view.id] = max(states)
        insort(self._views, view.id)
        for later, state in self._went_on_with.items():
            between = bisect_right(self._views, state)
            if self._views[between] < later:
                raise Violation(
                    "CHAIN-K8",
                    f"primary view {later} goes on with the state of {state}, after {self._views[between]}",
                )


class TableRules:
    """TABLE: replicas agree."""

    def __init__(self) -> None:
        self._digests: dict[tuple[RingId, int], tuple[int, str]] = {}
        self._last: dict[int, tuple[RingId, int]] = {}

    def check(self, node: int, service: DlmService) -> None:
        """Compare this node's table with the others' at the same position, if it has moved."""
        table = service.table
        place = (table.ring, table.applied)
        if not service.complete or self._last.get(node) == place:
            return
        self._last[node] = place
        digest = table.digest()
        other, expected = self._digests.setdefault(place, (node, digest))
        if digest != expected:
            raise Violation(
                "TABLE", f"nodes {node} and {other} have different tables at position {place[0]}:{place[1]}"
            )

    def invariants(self, node: int, service: DlmService) -> None:
        """The table's own view of itself."""
        try:
            service.table.invariants()
        except AssertionError as error:
            raise Violation("TABLE", f"node {node}: {error}") from error

    def forget(self, node: int) -> None:
        """A process has ended."""
        self._last.pop(node, None)


def _f(fence: int) -> str:
    return f"{fence >> 32}.{fence & 0xFFFF_FFFF}"
