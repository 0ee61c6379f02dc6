"""What an operator counts with: messages apart from the packets that carry them."""

from __future__ import annotations

import pytest

from tests.vsync.engine.harness import Story


@pytest.mark.parametrize(
    ("submits", "messages"),
    [
        (["submit 2 one two three"], 3),
        (["large 2 200000"], 1),
        (["large 2 200000", "submit 2 one", "safe 2 two"], 3),
    ],
)
def test_messages_are_counted_once_however_they_are_packed(submits: list[str], messages: int) -> None:
    story = Story(3)
    story.do("start 1 2 3")
    story.do("run 2000")
    for line in submits:
        story.do(line)
    story.do("run 100")
    sent = {node: engine.counters for node, engine in story.engines.items()}
    assert [sent[node]["messages_tx"] for node in (1, 2, 3)] == [0, messages, 0]
    assert sent[2]["mcast_tx"] != messages  # three fit in one packet, the large one does not
