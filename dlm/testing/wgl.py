"""Linearizability by search: is there an order of the calls, each inside its time, that a sequential model allows?

The algorithm of Wing and Gong with Lowe's memory of (calls placed, state): a depth-first search that places one of
the calls that nothing still unplaced must precede, and never enters a situation twice. Exponential in the number of
calls under way at once, in practice linear in their number. ``linear`` decides locks without a search, as their
fences say the order, and is compared with this one in tests; registers are judged by it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["NEVER", "Call", "Found", "Undecided", "linearize"]

NEVER = sys.maxsize  #: ``returned`` of a call that may take effect at any time from its invocation on
LIMIT = 1_000_000

W = TypeVar("W")
S = TypeVar("S", bound=Hashable)


class Undecided(Exception):
    """The search was given up after so many situations."""


@dataclass(frozen=True, slots=True)
class Call(Generic[W]):
    """``what`` happened at one instant from ``called`` to ``returned``, both included; an ``optional`` one perhaps
    not at all.
    """

    called: int
    returned: int
    what: W
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """The order in which the calls can have happened, as indices; the longest one that was found if not ``good``,
    and the call that has then no place before its return.
    """

    good: bool
    order: tuple[int, ...]
    stuck: int | None = None


class _Entry:
    """The call or the return of one call, in a list by time from which both are taken out and put back."""

    __slots__ = ("after", "before", "index", "partner")

    def __init__(self, index: int) -> None:
        self.index = index
        self.partner: _Entry | None = None  #: of a call entry its return entry; a return entry has none
        self.before: _Entry | None = None
        self.after: _Entry | None = None

    def unlink(self) -> None:
        """Take it out; the neighbours are remembered."""
        assert self.before is not None
        self.before.after = self.after
        if self.after is not None:
            self.after.before = self.before

    def relink(self) -> None:
        """Put it back: in the reverse order of taking out."""
        assert self.before is not None
        self.before.after = self
        if self.after is not None:
            self.after.before = self


def linearize(
    calls: Sequence[Call[W]], start: S, step: Callable[[S, W], S | None], limit: int = LIMIT
) -> Found:
    """Look for an order. ``step(state, what)`` is the state after it, or ``None`` where it cannot have happened.

    Raises ``Undecided`` after ``limit`` situations.
    """
    head, ends = _linked(calls)
    state = start
    placed = 0  # bits
    seen: set[tuple[int, S]] = set()
    stack: list[tuple[_Entry, S]] = []
    best: tuple[int, ...] = ()
    stuck: int | None = None
    entry = head.after
    while head.after is not None:
        assert entry is not None
        chosen: _Entry | None = None
        new: S | None = None
        if entry.partner is not None:
            chosen, new = entry, step(state, calls[entry.index].what)
        elif calls[entry.index].optional:
            chosen, new = ends[entry.index], state  # it has not happened
        if chosen is not None and new is not None:
            situation = (placed | 1 << chosen.index, new)
            if situation not in seen:
                seen.add(situation)
                if len(seen) > limit:
                    raise Undecided(f"more than {limit} situations of {len(calls)} calls")
                stack.append((chosen, state))
                placed, state = situation
                _lift(chosen)
                entry = head.after
                continue
        if entry.partner is not None:
            entry = entry.after
            continue
        # A return that must not be passed: whatever was placed last was wrong.
        if stuck is None or len(stack) > len(best):
            best, stuck = tuple(each.index for each, _ in stack), entry.index
        if not stack:
            return Found(False, best, stuck)
        last, state = stack.pop()
        placed &= ~(1 << last.index)
        _unlift(last)
        entry = last.after
    return Found(True, tuple(each.index for each, _ in stack))


def _lift(entry: _Entry) -> None:
    assert entry.partner is not None
    entry.unlink()
    entry.partner.unlink()


def _unlift(entry: _Entry) -> None:
    assert entry.partner is not None
    entry.partner.relink()
    entry.relink()


def _linked(calls: Sequence[Call[W]]) -> tuple[_Entry, list[_Entry]]:
    """All entries by time, behind a head; and the call entries by index. At one instant calls come first."""
    opens = [_Entry(index) for index in range(len(calls))]
    rows: list[tuple[int, int, int, _Entry]] = []
    for index, call in enumerate(calls):
        end = _Entry(index)
        opens[index].partner = end
        rows += [(call.called, 0, index, opens[index]), (call.returned, 1, index, end)]
    head = last = _Entry(-1)
    for _, _, _, entry in sorted(rows, key=lambda row: row[:3]):
        last.after, entry.before = entry, last
        last = entry
    return head, opens
