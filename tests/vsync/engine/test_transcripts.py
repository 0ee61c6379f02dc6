"""Every transcript replays word for word. ``pytest --rewrite`` writes them anew: read the diff."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from harness import replay  # noqa: E402 - the harness stands beside the transcripts

STORIES = sorted((HERE / "transcripts").glob("*.txt"))


@pytest.mark.parametrize("path", STORIES, ids=lambda p: p.stem)
def test_transcript(path: Path, request: pytest.FixtureRequest) -> None:
    """The story is what it was when it was last reviewed."""
    told = path.read_text()
    now = replay(told)
    if request.config.getoption("--rewrite"):
        path.write_text(now)
    assert now == told


def test_there_are_stories() -> None:
    """An empty folder must not pass."""
    assert len(STORIES) >= 8
