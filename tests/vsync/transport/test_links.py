"""The choice of links, with a clock of our own: no sockets, no waiting."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from vsync.transport.links import BUSY_US, HISTORY, MISSES, NEED, STEADY_US, Links, LinkTiming

TIMING = LinkTiming()
RTT = 1_000


class World:
    """A peer that answers over the links that carry, after a millisecond."""

    def __init__(self, links: int = 2, busy: bool = True) -> None:
        self.now = 1_000_000
        self.links = Links(links, self.now)
        self.carries = [True] * links
        self.traffic = busy
        self.answers: list[tuple[int, int, int]] = []
        self.pings = 0

    def run(self, us: int) -> None:
        end = self.now + us
        while True:
            if self.traffic:
                self.links.busy(self.now)
            due = [self.links.deadline, *(at for at, _, _ in self.answers[:1])]
            if min(due) > end:
                self.now = end
                return
            self.now = max(self.now, min(due))
            while self.answers and self.answers[0][0] <= self.now:
                _, link, number = self.answers.pop(0)
                self.links.pong(link, number, self.now)
            if self.now >= self.links.deadline:
                for link, number in self.links.tick(self.now):
                    self.pings += 1
                    if self.carries[link]:
                        self.answers.append((self.now + RTT, link, number))
                assert self.links.deadline > self.now

    def states(self) -> list[str]:
        return [row["state"] for row in self.links.rows()]


def test_at_first_all_are_used_and_one_answer_is_enough() -> None:
    world = World()
    assert (world.states(), world.links.use) == (["down", "down"], (0, 1))
    world.run(2 * RTT)
    assert (world.states(), world.links.use) == (["up", "up"], (0,))
    assert world.links.take_doubt() is None
    assert world.links.rows()[0]["rtt_us"] == RTT


def test_the_first_by_order_that_is_up_is_used() -> None:
    world = World(3)
    world.carries = [False, True, True]
    world.run(100_000)
    assert world.links.use == (1,)
    world.carries[0] = True
    world.run(10 * TIMING.down)
    assert world.links.use == (0,)


def test_a_cut_is_suspected_before_300_ms_and_what_was_sent_since_is_doubtful() -> None:
    """Wherever in the interval the cut falls; the doubt reaches back before it."""
    for offset in range(0, TIMING.busy, 7_000):
        world = World()
        world.run(1_000_000 + offset)
        cut = world.now
        world.carries[0] = False
        while world.links.use == (0,):
            world.run(1_000)
        assert world.now - cut < 300_000
        assert world.links.use == (0, 1)
        assert world.states() == ["suspect", "up"]
        doubt = world.links.take_doubt()
        assert doubt is not None
        assert doubt[0] == (1,)
        assert doubt[1] <= cut
        assert cut - doubt[1] <= TIMING.busy + RTT
        world.run(MISSES * TIMING.suspect + 100_000)
        assert (world.states(), world.links.use) == (["down", "up"], (1,))
        assert world.links.take_doubt() is None


def test_one_lost_ping_is_a_suspicion_that_the_next_answer_ends() -> None:
    world = World()
    world.run(1_000_000)
    world.carries[0] = False
    while world.states()[0] == "up":
        world.run(1_000)
    world.carries[0] = True
    world.run(TIMING.suspect + 2 * RTT)
    assert (world.states(), world.links.use) == (["up", "up"], (0,))
    assert world.links.rows()[0]["downs"] == 0


def test_a_link_that_was_down_needs_answers_in_a_row_and_more_each_time() -> None:
    """Hysteresis: a flapping link is used less and less; one that was steady for long starts anew."""
    world = World()
    world.run(1_000_000)

    def fail_and_count() -> int:
        world.carries[0] = False
        while world.states()[0] != "down":
            world.run(1_000)
        world.carries[0] = True
        before = world.links.links[0].answered
        while world.states()[0] != "up":
            world.run(1_000)
        return world.links.links[0].answered - before

    assert fail_and_count() == NEED
    assert fail_and_count() == 2 * NEED
    assert fail_and_count() == 4 * NEED
    world.run(STEADY_US)
    assert fail_and_count() == NEED


def test_a_broken_connection_moves_at_once() -> None:
    world = World()
    world.run(1_000_000)
    world.links.broke(0, world.now)
    assert world.links.use == (1,)
    doubt = world.links.take_doubt()
    assert doubt is not None
    assert doubt[0] == (1,)
    world.links.made(0, world.now)
    assert world.links.deadline <= world.now


def test_when_none_is_up_all_are_used() -> None:
    world = World()
    world.run(1_000_000)
    world.carries = [False, False]
    world.run(2_000_000)
    assert (world.states(), world.links.use) == (["down", "down"], (0, 1))
    assert not world.links.alive


def test_pings_are_rare_while_nothing_is_sent() -> None:
    idle, busy = World(busy=False), World()
    for world in (idle, busy):
        world.run(BUSY_US)
        world.pings = 0
        world.run(10_000_000)
    assert idle.pings == 2 * 5
    assert busy.pings == 100 + 5  # the link that is not used is as idle as before


def test_this_process_stood_still() -> None:
    """SIGSTOP for two seconds: no link is blamed, whether the answers are read first or the timer runs first."""
    for answers_first in (False, True):
        world = World()
        world.run(1_000_000)
        while not world.answers:
            world.run(100)
        _, link, number = world.answers.pop(0)
        world.answers.clear()
        world.now += 2_000_000
        if answers_first:
            world.links.pong(link, number, world.now)
        world.links.tick(world.now)
        assert world.states() == ["up", "up"]


def test_loss_is_that_of_the_last_hundred_pings() -> None:
    world = World()
    world.carries = [False, False]
    world.run(5_000_000)  # the peer has not been started yet
    world.carries = [True, True]
    world.run(20_000_000)
    assert world.links.rows()[0]["loss"] == 0
    world.carries[0] = False
    world.run(5_000_000)
    assert 0 < world.links.rows()[0]["loss"] < 100
    world.run(HISTORY * TIMING.down * 2)
    assert world.links.rows()[0]["loss"] == 100


def test_trouble_elsewhere_is_looked_into_at_once() -> None:
    """Another node lost the same link: both are used until the answer is there, a round trip later."""
    world = World()
    world.run(1_000_000)
    world.links.suspect(0, world.now)
    assert world.links.use == (0, 1)
    assert world.links.take_doubt() is not None
    assert world.links.take_fallen() == []  # not its own observation: it is not told on
    world.run(RTT + 1)
    assert (world.states(), world.links.use) == (["up", "up"], (0,))
    world.links.suspect(1, world.now)  # not in use: nothing hangs on it
    world.links.suspect(9, world.now)
    assert world.states() == ["up", "up"]


def test_a_fall_is_told_once_and_only_if_it_is_the_link() -> None:
    world = World()
    world.run(1_000_000)
    world.carries[0] = False
    while world.links.use == (0,):
        world.run(1_000)
    assert world.links.take_fallen() == [0]
    assert world.links.take_fallen() == []
    dead = World()
    dead.run(1_000_000)
    dead.carries = [False, False]
    dead.links.broke(0, dead.now)
    dead.links.broke(1, dead.now)
    assert dead.links.take_fallen() == []


def test_answers_to_nothing_and_late_ones_are_ignored() -> None:
    world = World(1)
    world.links.pong(0, 77, world.now)
    world.links.pong(5, 1, world.now)
    assert world.states() == ["down"]
    ((link, number),) = world.links.tick(world.now)
    world.links.tick(world.links.deadline)
    world.links.pong(link, number, world.links.deadline)
    assert world.states() == ["down"]
    assert world.links.rows()[0]["rtt_us"] is None


def test_what_could_not_be_sent_is_not_counted() -> None:
    world = World(1)
    for link, number in world.links.tick(world.now):
        world.links.unsent(link, number)
    assert world.links.rows()[0]["pings"] == 0
    world.run(0)
    assert world.links.rows()[0]["loss"] == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(1_000, 900_000)), max_size=25))
def test_whatever_happens_a_link_that_carries_is_used(story: list[tuple[int, bool, int]]) -> None:
    """After any story, a second with one steady link: it is among those in use."""
    world = World(3)
    for link, carries, us in story:
        world.carries[link] = carries
        world.run(us)
        assert world.links.use
        assert len(set(world.links.use)) == len(world.links.use)
    world.run(20_000_000)
    up = [link for link in range(3) if world.carries[link]]
    assert set(up) & set(world.links.use) or not up
