"""Lingering: a lone talker waits for no token; everybody else notices nothing but later tokens."""

from __future__ import annotations

from tests.vsync.engine.harness import Talk
from vsync.engine import State
from vsync.engine.ring import PACKETS_PER_VISIT
from vsync.types import Timing

HOP_US = 100


def test_a_lone_talker_waits_for_no_token() -> None:
    story = Talk()
    gaps = story.talk(2, 200)
    assert story.counter(2, "token_linger") > 0
    waited = sum(gap > 0 for gap in gaps[10:])  # one turn of the ring for as many packets as may be sent
    assert waited <= len(gaps[10:]) / (PACKETS_PER_VISIT - 1) + 1
    assert story.orders[1] == story.orders[2] == story.orders[3]
    assert len(story.orders[1]) == 200


def test_it_stays_for_who_takes_a_while_to_answer() -> None:
    """A client of a daemon: its next message comes some hundred µs after the last one: the token would be away."""
    story = Talk()
    story.do("submit 2 first")
    story.do("run 5")
    visits = []
    for _ in range(50):
        before = len(story.times[2]), story.now
        story.do("submit 2 next")
        while len(story.times[2]) == before[0]:
            story.do("run 0.1")
        visits.append(story.now - before[1] > HOP_US)
        story.do("run 0.4")
    assert sum(visits) <= len(visits) / 4  # those of messages for which the token went round
    assert story.engines[2].ring.visits < 3 * len(visits)


def test_who_is_silent_for_long_keeps_no_token() -> None:
    story = Talk()
    for _ in range(5):
        story.do("submit 2 now and then")
        story.do("run 20")
        assert not story.engines[2].ring.lingers_until


def test_somebody_else_asks_for_it() -> None:
    """Whoever has something to send waits for a CANCEL and the token's way, however long it might linger."""
    story = Talk(timing=Timing(linger=40_000))
    story.left[2] = 10_000
    story.do("submit 2 first")
    story.do("run 20")
    waits = []
    for _ in range(20):
        story.sent.clear()
        before, count = story.now, len(story.times[1])
        story.do("submit 1 mine")
        while len(story.times[1]) == count:
            story.do("run 0.1")
        waits.append(story.now - before)
        assert story.sent["CANCEL"] <= 1
        story.do("run 2")
    assert max(waits) <= 5 * HOP_US


def test_two_talkers_send_no_cancels() -> None:
    """Each would ask the other for a token that is on its way."""
    story = Talk()
    story.left[3] = 99
    story.do("submit 3 first")
    story.talk(2, 100)
    assert story.sent["CANCEL"] <= 3


def test_switched_off_each_message_waits_for_a_turn() -> None:
    story = Talk(timing=Timing(linger=0))
    gaps = story.talk(2, 50)
    assert story.counter(2, "token_linger") == 0
    assert min(gaps[2:]) == 3 * HOP_US


def test_it_ends_after_its_time() -> None:
    story = Talk(timing=Timing(linger=500))
    story.talk(2, 40)
    visits = story.engines[2].ring.visits
    story.do("submit 2 one")
    story.do("submit 3 two")
    story.do("run 1")
    assert story.orders[3][-2:] == [b"one", b"two"]
    assert story.engines[2].ring.visits > visits


def test_two_talkers_share_the_ring() -> None:
    story = Talk()
    story.left[3] = 99
    story.do("submit 3 first")
    gaps = story.talk(2, 100)
    assert max(gaps) <= 2 * story.timing.linger + 3 * HOP_US  # it may have to wait for the other one once
    assert story.orders[1] == story.orders[2] == story.orders[3]
    assert len(story.orders[1]) == 200
    assert sum(gap > 3 * HOP_US for gap in gaps) <= 2


def test_somebody_else_waits_no_longer_than_that() -> None:
    story = Talk()
    story.left[2] = 10_000
    story.do("submit 2 first")
    story.do("run 20")
    before = story.now
    story.do("submit 1 urgent")
    story.do("run 5")
    assert story.times[1][-1] - before <= story.timing.linger + 3 * HOP_US


def test_a_safe_message_is_not_held_up() -> None:
    story = Talk()
    story.left[2] = 10_000
    story.do("submit 2 first")
    story.do("run 20")
    assert story.counter(2, "token_linger") > 0
    before = story.now
    story.do("safe 2 safe")
    story.do("run 5")
    assert b"safe" in story.orders[2]
    place = story.orders[2].index(b"safe")
    assert story.times[2][place] - before <= story.timing.linger + 3 * 3 * HOP_US


def test_a_safe_message_ends_it() -> None:
    """The token has left with it, so who submits the next message must not wait for it here."""
    story = Talk(timing=Timing(linger=20_000))
    story.talk(2, 6, ms=2)
    engine = story.engines[2]
    assert engine.ring.lingers_until > story.now
    story.do("safe 2 safe")
    engine.fire(story.now)  # what was submitted goes out
    assert engine.ring.held is None
    assert engine.ring.lingers_until == 0
    story._carry_out(2)
    story.do("run 5")
    assert story.orders[1][-1] == b"safe"


def test_hurry_sends_the_token_round() -> None:
    story = Talk(timing=Timing(linger=20_000))
    story.talk(2, 6, ms=2)
    engine = story.engines[2]
    assert engine.ring.lingers_until > story.now
    engine.hurry(story.now)
    story.do("run 1")
    assert engine.ring.stable == engine.ring.aru


def test_who_hurries_too_late_sends_nothing() -> None:
    """The ring is lost while the token lingers: it is of no use to anybody any more (seed 6419 of the locks)."""
    story = Talk(timing=Timing(linger=20_000))
    story.talk(2, 6, ms=2)
    engine = story.engines[2]
    assert engine.ring.lingers_until > story.now
    story.do("gone 2 3")
    assert engine.state is State.GATHER
    engine.submit(b"later", story.now)
    engine.hurry(story.now)
    story.sent.clear()
    story.do("cut 2 1")
    story.do("cut 2 3")
    story.do("run 30")
    assert engine.state is State.GATHER
    assert story.sent["DATA"] == story.sent["TOKEN"] == 0


def test_an_idle_token_rests_where_the_last_message_came_from() -> None:
    story = Talk()
    story.do("submit 3 hello")
    story.do("run 400")
    assert [node for node in (1, 2, 3) if story.engines[node].ring.held] == [3]
    before = story.now
    story.do("submit 3 again")
    story.do("run 5")
    assert story.times[3][-1] == before  # at once
    story.do("run 400")
    before = story.now
    story.do("submit 1 from elsewhere")
    story.do("run 5")
    assert story.times[1][-1] - before == 2 * HOP_US  # the cancel, and the token: 3 hands it to 1


def test_a_talker_that_dies_while_the_token_lingers_is_missed() -> None:
    story = Talk(timing=Timing(linger=20_000))
    story.talk(2, 6, ms=2)
    assert story.engines[2].ring.lingers_until > story.now
    story.do("crash 2")
    story.do("gone 1 2")
    story.do("gone 3 2")
    story.do("run 2000")
    assert [member.node for member in story.engines[1].ring.members] == [1, 3]
    assert story.orders[1] == story.orders[3]


def test_members_that_disagree_on_the_keeper_do_not_pass_the_token_for_ever() -> None:
    """A damaged packet with a number far ahead told one of them of another origin."""
    story = Talk()
    story.do("submit 3 hello")
    story.do("run 400")
    story.engines[3].ring.last_origin = 1
    story.do("run 300")
    story.sent.clear()
    story.do("run 1000")
    assert 0 < story.sent["TOKEN"] < 100
    story.do("submit 2 next")
    story.do("run 400")
    assert story.orders[1] == story.orders[2] == story.orders[3] == [b"hello", b"next"]
