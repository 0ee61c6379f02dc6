"""Sealed datagrams: what is not authentic, or came before, does not get in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsync.keys import ClusterKey
from vsync.transport.seal import LANE_AT, OVERHEAD, STRANGERS, WINDOW, AuthenticationFailed, Opener, Sealer, Window

KEY, OTHER = ClusterKey(bytes(32)), ClusterKey(bytes(31) + b"\1")
LANE = b"\0"


def sealer(key: ClusterKey | None = KEY, life: int = 5, salt: int = 9, receiver: int = 2) -> Sealer:
    return Sealer(key, 1, life, salt, receiver)


def opener(key: ClusterKey | None = KEY, me: int = 2) -> Opener:
    return Opener(key, me, frozenset({1, 2, 3} - {me}))


def give(receiver: Opener, datagram: bytes) -> tuple[int, bytes] | None:
    return receiver.open(memoryview(datagram))


@pytest.mark.parametrize("key", [KEY, None])
def test_what_is_sealed_is_opened_once(key: ClusterKey | None) -> None:
    sender, receiver = sealer(key), opener(key)
    first, second = sender.seal(b"hello", LANE), sender.seal(b"hello", LANE)
    assert first != second
    assert give(receiver, second) == (1, b"hello")
    assert give(receiver, first) == (1, b"hello")
    assert give(receiver, first) is None
    assert give(receiver, second) is None
    assert len(sender.seal(b"hello", LANE)) <= 5 + OVERHEAD
    assert (b"hello" in first) == (key is None)


@given(st.data())
def test_any_damage_is_noticed(data: st.DataObject) -> None:
    """Whichever bit is turned, in header or body: refused, or (an older life's number) ignored."""
    datagram = bytearray(sealer().seal(b"hello", LANE))
    receiver = opener()
    bit = data.draw(st.integers(0, 8 * len(datagram) - 1))
    datagram[bit // 8] ^= 1 << bit % 8
    with pytest.raises(AuthenticationFailed):
        give(receiver, bytes(datagram))
    assert give(receiver, sealer().seal(b"hello", LANE)) == (1, b"hello")


@given(st.binary(max_size=100), st.sampled_from([b"", b"vU", b"vu", b"VS"]), st.sampled_from([KEY, None]))
def test_noise_raises_nothing_else(noise: bytes, start: bytes, key: ClusterKey | None) -> None:
    try:
        give(opener(key), start + noise)
    except AuthenticationFailed as e:
        assert str(e)  # noqa: PT017 - whether it is raised depends on the noise


@pytest.mark.parametrize(
    ("theirs", "ours", "says"),
    [
        (OTHER, KEY, "not sealed with this cluster's key"),
        (None, KEY, "the sender has no cluster key"),
        (KEY, None, "this node has none"),
    ],
)
def test_another_key_or_none_is_named(theirs: ClusterKey | None, ours: ClusterKey | None, says: str) -> None:
    with pytest.raises(AuthenticationFailed, match=says):
        give(opener(ours), sealer(theirs).seal(b"x", LANE))


def test_a_datagram_for_another_node_or_reflected_to_its_sender_is_refused() -> None:
    datagram = sealer(receiver=2).seal(b"x", LANE)
    with pytest.raises(AuthenticationFailed, match="not sealed"):
        give(opener(me=3), datagram)
    with pytest.raises(AuthenticationFailed, match="it is node 1, which is not configured"):
        give(opener(me=1), datagram)


def test_a_few_strangers_are_heard() -> None:
    """A node that is not configured here has the key: the engine says why it is refused, and tells it."""
    receiver = opener()
    for node in range(10, 10 + STRANGERS):
        assert give(receiver, Sealer(KEY, node, 1, 9, 2).seal(b"let me in", LANE)) == (node, b"let me in")
    with pytest.raises(AuthenticationFailed, match="it is node 99, which is not configured"):
        give(receiver, Sealer(KEY, 99, 1, 9, 2).seal(b"let me in", LANE))
    assert give(receiver, Sealer(KEY, 3, 1, 9, 2).seal(b"hello", LANE)) == (3, b"hello")
    receiver.admit(frozenset({1, 3, 10}))
    assert give(receiver, Sealer(KEY, 99, 1, 9, 2).seal(b"let me in", LANE)) == (99, b"let me in")


def test_a_life_that_is_over_is_ignored_even_if_its_datagrams_are_recorded() -> None:
    receiver = opener()
    old, young = sealer(life=5), sealer(life=6)
    recorded = [old.seal(b"old", LANE) for _ in range(3)]
    assert give(receiver, recorded[0]) == (1, b"old")
    assert give(receiver, young.seal(b"young", LANE)) == (1, b"young")
    assert give(receiver, recorded[1]) is None
    assert give(receiver, young.seal(b"young", LANE)) == (1, b"young")


def test_a_forged_younger_life_does_not_end_the_real_one() -> None:
    receiver, sender = opener(), sealer()
    assert give(receiver, sender.seal(b"x", LANE)) is not None
    with pytest.raises(AuthenticationFailed):
        give(receiver, sealer(OTHER, life=9).seal(b"x", LANE))
    assert give(receiver, sender.seal(b"y", LANE)) == (1, b"y")


def test_two_lives_never_share_a_key() -> None:
    """Not even if the incarnation is the same: the state directory was lost and the clock set back."""
    one, two = sealer(salt=1).seal(bytes(64), LANE), sealer(salt=2).seal(bytes(64), LANE)
    assert one[-80:] != two[-80:]


def test_the_lane_is_protected_too() -> None:
    datagram = bytearray(sealer().seal(b"x", LANE))
    datagram[LANE_AT] = 1
    with pytest.raises(AuthenticationFailed):
        give(opener(), bytes(datagram))


@given(st.lists(st.integers(0, 3 * WINDOW), max_size=60))
def test_the_window_takes_each_number_once(numbers: list[int]) -> None:
    """Against a model: a set, and the highest number."""
    window, taken, top = Window(), set[int](), -1
    for number in numbers:
        wanted = number not in taken and number > top - WINDOW
        assert window.fresh(number) == wanted
        if wanted:
            window.take(number)
            taken.add(number)
            top = max(top, number)
