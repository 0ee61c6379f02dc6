"""The tables of ``dlm.modes``, against independent statements of the same rules."""

from __future__ import annotations

import pytest

from dlm.modes import (
    COMPATIBLE,
    CONFLICTING,
    CR,
    CW,
    EX,
    MODES,
    NAMES,
    NL,
    NONE,
    PR,
    PW,
    QUECVT_FROM,
    is_down,
    is_middle,
    value_direction,
)
from dlm.resource import Effect, Lock, Resource, State, What

# What a mode lets its holder do, and what it lets others do: (reads, writes, others may read, others may write).
RIGHTS = {
    NL: (False, False, True, True),
    CR: (True, False, True, True),
    CW: (True, True, True, True),
    PR: (True, False, True, False),
    PW: (True, True, True, False),
    EX: (True, True, False, False),
}


def allows(one: int, other: int) -> bool:
    """Whether ``one`` lets the holder of ``other`` do what ``other`` is for. CW's reads are not protected ones."""
    reads, writes, *_ = RIGHTS[other]
    _, _, may_read, may_write = RIGHTS[one]
    return (may_read or not reads) and (may_write or not writes)


@pytest.mark.parametrize("held", MODES, ids=NAMES)
@pytest.mark.parametrize("asked", MODES, ids=NAMES)
def test_every_pair_of_modes(held: int, asked: int) -> None:
    expected = allows(held, asked) and allows(asked, held)
    assert COMPATIBLE[held][asked] is expected
    resource = Resource(iter(range(1, 9)).__next__)
    out: list[Effect] = []
    resource.lock(Lock((1, 1, 1), held), out)
    resource.lock(Lock((2, 1, 1), asked), out)
    assert [effect.what for effect in out] == [What.GRANTED] * (1 + expected)
    assert (resource.locks[2, 1, 1].state is State.GRANTED) is expected
    resource.invariants()


def test_compatibility_is_symmetric() -> None:
    assert all(COMPATIBLE[a][b] == COMPATIBLE[b][a] for a in MODES for b in MODES)
    assert CONFLICTING[EX] == (CR, CW, PR, PW, EX)
    assert CONFLICTING[NL] == ()


@pytest.mark.parametrize("old", MODES, ids=NAMES)
@pytest.mark.parametrize("new", MODES, ids=NAMES)
def test_a_down_conversion_never_conflicts_with_more(old: int, new: int) -> None:
    assert is_middle(old, new) == ({old, new} == {PR, CW})
    if is_down(old, new):
        assert set(CONFLICTING[new]) <= set(CONFLICTING[old])
    if new < old and not set(CONFLICTING[new]) <= set(CONFLICTING[old]):
        assert is_middle(old, new)


def test_quecvt_is_never_for_down_or_equal() -> None:
    for old in MODES:
        for new in QUECVT_FROM[old]:
            assert new != old
            assert not is_down(old, new)
    assert CW in QUECVT_FROM[PR]
    assert PR in QUECVT_FROM[CW]


@pytest.mark.parametrize(
    ("old", "new", "direction"),
    [(NONE, m, "R") for m in MODES]
    + [(NL, m, "R") for m in MODES]
    + [(CR, NL, "."), (CW, CR, "."), (PR, CW, "."), (CW, PR, "R"), (PW, PW, "W"), (PW, EX, "R")]
    + [(EX, m, "W") for m in MODES],
)
def test_value_block_direction(old: int, new: int, direction: str) -> None:
    assert value_direction(old, new) == direction
