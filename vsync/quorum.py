"""Is a view primary? Pure, and computed from the commit token alone, so that all members agree with the view (K1).

Every member's entry says how many votes it has and how many all configured nodes have together. A view is primary
iff its members have more than half of the largest total that any of them expects: two such views share a member.
"""

from __future__ import annotations

from collections.abc import Iterable

from vsync.types import Entry

__all__ = ["is_primary", "tally"]


def tally(entries: Iterable[Entry]) -> tuple[int, int]:
    """(votes present, votes expected) of a view."""
    votes = expected = 0
    for entry in entries:
        votes += entry.votes
        expected = max(expected, entry.expected_votes)
    return votes, expected


def is_primary(entries: Iterable[Entry]) -> bool:
    """Policy ``majority`` (QUO-Q1)."""
    votes, expected = tally(entries)
    return votes * 2 > expected
