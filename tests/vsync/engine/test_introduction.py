"""A newcomer is introduced to all of a ring before it breaks up: what may keep it out for ever."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from tests.vsync.engine.harness import HOP, Story
from vsync.engine import contacts
from vsync.engine.states import State
from vsync.engine.timers import Timer
from vsync.roster import Roster
from vsync.types import RingId


def met(story: Story) -> dict[int, list[int]]:
    return {node: [member.node for member in engine.ring.members] for node, engine in story.engines.items()}


def ring_of_two_and_one_alone() -> Story:
    story = Story()
    story.do("cut 1 2")
    story.do("cut 1 3")
    story.do("start 1 2 3")
    story.do("run 1500")
    assert met(story) == {1: [1], 2: [2, 3], 3: [2, 3]}
    story.engines[1].timers.set(Timer.MERGE, story.now + 60_000_000)  # it does not ask: it is found
    return story


def test_who_looks_for_others_hears_all_of_their_ring() -> None:
    """Also one that it had better left in peace for a while (seed 11104 of the locks with 3 nodes)."""
    story = ring_of_two_and_one_alone()
    looking, three = story.engines[1], story.engines[3].me
    looking.backoff[three] = (story.now + 60_000_000, 60_000_000)
    story.do("heal")
    story.do("run 1500")
    assert met(story) == {1: [1, 2, 3], 2: [1, 2, 3], 3: [1, 2, 3]}


def test_nobody_waits_until_a_newcomer_hears_who_was_removed() -> None:
    """It refuses that node, and yet belongs into a ring with the other (seed 11395 of the locks with 3 nodes)."""
    story = ring_of_two_and_one_alone()
    knows = story.engines[2]
    named = Roster.of_file(knows.config.peers[:2])
    contacts.learn(knows, replace(named, version=2), RingId(1, 1), 7)
    story.do("heal")
    story.do("cut 1 3")
    story.do("run 3000")
    assert met(story) == {1: [1, 2], 2: [1, 2], 3: [3]}


def test_who_is_heard_and_does_not_talk_to_all_is_told_whom_to_talk_to() -> None:
    """It comes back with an empty disk, and its file is old (seed 14240 of the locks with 3 nodes)."""
    story = Story()
    everybody, story.peers = story.peers, story.peers[1:]
    story.do("start 2")
    story.peers = everybody
    story.do("cut 1 2")
    story.do("cut 1 3")
    story.do("start 1 3")
    story.do("run 1500")
    assert met(story) == {1: [1], 2: [2, 3], 3: [2, 3]}
    knows = story.engines[1]
    contacts.learn(knows, replace(Roster.of_file(everybody), version=2), RingId(1, 1), 7)
    knows.counters["memb_merge_detect_tx"] = 1  # others have just been told
    story.do("heal")
    story.do("run 2500")
    assert met(story) == {1: [1, 2, 3], 2: [1, 2, 3], 3: [1, 2, 3]}


class Slower(Story):
    """Frames take 1 to 12 times as long as elsewhere, by the link."""

    def __init__(self, nodes: int, seed: int) -> None:
        random = Random(seed)
        self.times = {(a, b): random.randint(1, 12) * HOP for a in range(1, nodes + 1) for b in range(1, nodes + 1)}
        super().__init__(nodes)

    def hop(self, source: int, target: int) -> int:
        return self.times[source, target]


def joined_within_a_join_interval(story: Slower, old: str, new: str) -> None:
    story.do(f"start {old}")
    story.do("run 1500")
    ring = [int(node) for node in old.split()]
    assert met(story) == dict.fromkeys(ring, ring)
    story.do(f"start {new}")
    while all(story.engines[node].state is State.OPERATIONAL for node in ring):
        story.do("run 0.1")
    story.do(f"run {story.engines[1].timing.join / 1250}")
    everybody = sorted(story.engines)
    assert met(story) == dict.fromkeys(everybody, everybody)


def test_who_hears_of_a_newcomer_through_a_member_does_not_ask_twice() -> None:
    """One join of fifty with vsyncd: all stood still for a join interval, as 1 waited for what 3 had said."""
    story = Slower(3, 0)
    story.times = dict.fromkeys(story.times, HOP) | {(2, 1): 5 * HOP}
    joined_within_a_join_interval(story, "1 3", "2")


@pytest.mark.parametrize("seed", range(30))
def test_nobody_waits_for_what_was_said_before(seed: int) -> None:
    """Several come at once, and in whatever order the nodes hear of each other nobody has to say a thing twice."""
    joined_within_a_join_interval(Slower(5, seed), "1 3 5", "2 4")
    joined_within_a_join_interval(Slower(4, seed), "1 3", "2 4")
