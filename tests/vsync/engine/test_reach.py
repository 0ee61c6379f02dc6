"""Cells of nodes that all hear each other, against brute force."""

from __future__ import annotations

from itertools import combinations
from random import Random

import pytest

from vsync.engine import reach
from vsync.types import Member


def rows_of(rng: Random, members: list[Member], density: float) -> dict[Member, tuple[int, frozenset[Member]]]:
    return {m: (1, frozenset([m, *(o for o in members if rng.random() < density)])) for m in members}


def brute(members: list[Member], rows: reach.Rows) -> set[Member]:
    """The largest clique, of equal ones the first in lexical order."""
    for size in range(len(members), 0, -1):
        for some in combinations(members, size):
            if all(b in rows[a][1] and a in rows[b][1] for a, b in combinations(some, 2)):
                return set(some)
    return set()


@pytest.mark.parametrize("seed", range(60))
def test_cells_are_what_brute_force_finds(seed: int) -> None:
    """And they are a partition: whoever is in my cell has the same cell."""
    rng = Random(seed)
    members = [Member(n, 1) for n in range(1, rng.randint(2, 8))]
    rows = rows_of(rng, members, rng.choice([0.3, 0.6, 0.9, 1.0]))
    left, expected = list(members), {}
    while left:
        clique = brute(left, rows)
        expected.update(dict.fromkeys(clique, clique))
        left = [m for m in left if m not in clique]
    for me in members:
        assert reach.cell(me, members, rows) == expected[me]


def test_who_has_no_row_hears_nobody() -> None:
    a, b, c = (Member(n, 1) for n in (1, 2, 3))
    rows = {a: (1, frozenset((a, b, c))), b: (1, frozenset((a, b, c)))}
    assert reach.cell(a, (a, b, c), rows) == {a, b}
    assert reach.cell(c, (a, b, c), rows) == {c}


def test_silent_are_those_whom_nobody_has_heard() -> None:
    a, b, c, d = (Member(n, 1) for n in (1, 2, 3, 4))
    rows = {a: (1, frozenset((a, b))), b: (1, frozenset((b, c)))}
    assert reach.silent((a, b, c, d), frozenset((a, b)), rows) == {d}
    assert reach.silent((a, b, c, d), frozenset((a,)), rows) == {c, d}


@pytest.mark.parametrize("count", [20, 60])
def test_cells_of_large_clusters_are_cliques(count: int) -> None:
    """Searched for exactly or not, everybody in one hears everybody."""
    members = [Member(n, 1) for n in range(1, count + 1)]
    for seed in range(10):
        rows = rows_of(Random(seed), members, 0.85)
        cell = reach.cell(members[0], members, rows)
        assert all(b in rows[a][1] and a in rows[b][1] for a, b in combinations(sorted(cell), 2))
