"""Who hears whom: what to do when not all hear all (asymmetric and broken links).

Each node's JOIN passes on the rows it knows: "this node has heard those". From the rows follow two decisions that
all nodes with the same rows take alike:

* whom *nobody* hears is dead or cut off, and can be failed early (``silent``);
* if two nodes that others hear do not hear each other, they cannot be in one ring. The candidates are divided into
  cells of which everybody hears everybody: the largest first, of equal ones the one with the lowest ids (``cell``).
  A node keeps to its cell. Without this rule each of the two fails the other, and whoever hears both fails both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vsync.types import Member
from vsync.wire_forming import Row

__all__ = ["cell", "silent"]

EXACT = 20  #: candidates up to which the largest clique is searched for exactly; beyond, greedily

Rows = Mapping[Member, Row]


def silent(candidates: Iterable[Member], heard: frozenset[Member], rows: Rows) -> set[Member]:
    """The candidates that none of ``heard`` has heard."""
    known = set(heard)
    for member in heard:
        if member in rows:
            known |= rows[member][1]
    return set(candidates) - known


def cell(me: Member, candidates: Iterable[Member], rows: Rows) -> set[Member]:
    """The cell that ``me`` belongs to. A node without a row hears nobody."""
    left = set(candidates) | {me}
    while True:
        clique = _largest_clique(sorted(left), rows)
        if me in clique:
            return clique
        left -= clique


def _hears(a: Member, b: Member, rows: Rows) -> bool:
    return a in rows and b in rows and b in rows[a][1] and a in rows[b][1]


def _largest_clique(members: list[Member], rows: Rows) -> set[Member]:
    """The largest set in which all hear each other; of equal ones the first in lexical order."""
    neighbours = {a: {b for b in members if a != b and _hears(a, b, rows)} for a in members}
    if len(members) > EXACT:
        return _greedy(members, neighbours)
    best: list[Member] = members[:1]

    def extend(chosen: list[Member], possible: list[Member]) -> None:
        nonlocal best
        if len(chosen) > len(best):
            best = list(chosen)
        for index, member in enumerate(possible):
            if len(chosen) + len(possible) - index <= len(best):
                return
            extend([*chosen, member], [m for m in possible[index + 1 :] if m in neighbours[member]])

    extend([], members)
    return set(best)


def _greedy(members: list[Member], neighbours: Mapping[Member, set[Member]]) -> set[Member]:
    clique: set[Member] = set()
    for member in sorted(members, key=lambda m: (-len(neighbours[m]), m)):
        if clique <= neighbours[member]:
            clique.add(member)
    return clique
