"""The demo's own check can fail, and the demo itself runs."""

from __future__ import annotations

import pytest

from dlm.demo import Turn, check_turns
from vsync.demo import ActFailed


def test_turns_one_after_the_other_are_fine() -> None:
    check_turns([Turn("b", 12, 300, None), Turn("a", 10, 100, 200), Turn("c", 11, 200, 300)])


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([Turn("a", 10, 100, 201), Turn("b", 11, 200, 300)], "at once"),
        ([Turn("a", 10, 100, None), Turn("b", 11, 200, 300)], "at once"),
        ([Turn("a", 10, 100, 200), Turn("b", 10, 200, 300)], "fence"),
        ([Turn("a", 10, 100, 200), Turn("b", 9, 250, 300)], "fence"),
    ],
)
def test_overlaps_and_old_fences_are_found(turns: list[Turn], reason: str) -> None:
    with pytest.raises(ActFailed, match=reason):
        check_turns(turns)
