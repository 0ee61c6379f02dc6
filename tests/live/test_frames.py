"""Frames counted: what a lock costs on the ring, and what an idle ring costs.

Exactly, with cores on a virtual clock; and once more with real daemons, by their own counters.
"""

from __future__ import annotations

import random

import pytest

import dlm
from tests.live.cores import Cores
from tests.live.helpers import counters, status, until
from vsync.testcluster import LocalCluster
from vsync.types import Timing

EX, NL = 5, 0


def lock_and_unlock(cores: Cores, node: int, h: int, name: bytes = b"n", mode: int = EX) -> None:
    """One round, each step answered."""
    assert "fence" in cores.call(node, "dlm", "lock", h=h, name=name, mode=mode)
    assert cores.call(node, "dlm", "unlock", h=h) == {}


# ---------------------------------------------------------------- cores


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_private_name_costs_one_message_once(count: int) -> None:
    cores = Cores(count)
    before = [cores.messages(node) for node in cores.cores]
    lock_and_unlock(cores, 1, 1)
    claimed = [cores.messages(node) for node in cores.cores]
    assert [now - then for now, then in zip(claimed, before, strict=True)] == [1] + [0] * (count - 1)
    sent = cores.sent["DATA"]
    for h in range(2, 102):
        lock_and_unlock(cores, 1, h)
    assert [cores.messages(node) for node in cores.cores] == claimed
    assert cores.sent["DATA"] == sent


def test_a_private_round_sends_no_frame_of_any_kind() -> None:
    """Not only no message: nothing leaves because of it, so it takes no time on the wire either."""
    cores = Cores(3)
    lock_and_unlock(cores, 2, 1)
    cores.run(1_000_000)  # the ring comes to rest; its token is held
    sent = cores.sent.total()
    at = cores.now
    lock_and_unlock(cores, 2, 2)
    assert cores.now - at <= 2
    assert cores.sent.total() == sent


def test_a_shared_name_costs_one_multicast_each() -> None:
    cores = Cores(3)
    for node in (2, 3):  # NL locks at two nodes keep the name shared for good
        assert "fence" in cores.call(node, "dlm", "lock", h=1, name=b"n", mode=NL)
    cores.run(1_000_000)
    for node in (1, 2, 3):
        for h in range(10, 20):
            before, receivers = cores.messages(node), cores.sent["DATA"]
            assert "fence" in cores.call(node, "dlm", "lock", h=h, name=b"n", mode=EX)
            assert cores.messages(node) - before == 1
            assert cores.call(node, "dlm", "unlock", h=h) == {}
            assert cores.messages(node) - before == 2
            assert cores.sent["DATA"] - receivers == 2 * 2  # to two others each, never twice


def test_names_are_private_each_by_itself() -> None:
    cores = Cores(2)
    names = [b"%d" % number for number in range(20)]
    before = cores.messages(1)
    for h, name in enumerate(names, 1):
        lock_and_unlock(cores, 1, h, name)
    assert cores.messages(1) - before == len(names)
    for h, name in enumerate(names * 3, 100):
        lock_and_unlock(cores, 1, h, name)
    assert cores.messages(1) - before == len(names)


def test_an_idle_ring_costs_a_rotation_per_hold() -> None:
    cores = Cores(3)
    cores.run(1_000_000)
    cores.sent.clear()
    cores.run(10_000_000)
    rotations = 10_000_000 / Timing().hold
    assert set(cores.sent) == {"TOKEN"}
    assert 0.8 * 3 * rotations <= cores.sent["TOKEN"] <= 1.1 * 3 * rotations


def test_damaged_frames_never_stop_a_core() -> None:
    """Whatever bytes come – among them frames that are nearly right – a core takes them and goes on."""
    for seed in range(12):
        draw = random.Random(seed)
        cores = Cores(3)
        for node in (1, 2, 3):
            cores.post(node, "group", "join", group="g")
            cores.post(node, "dlm", "lock", h=1, name=b"x", mode=draw.choice([0, 3, 5]))
        cores.run(100_000)
        kinds: dict[int, list[bytes]] = {}
        for _, frame in cores.frames:
            kinds.setdefault(frame[3], []).append(frame)
        for _ in range(150):
            frame = bytearray(draw.choice(kinds[draw.choice(sorted(kinds))]))
            for _ in range(draw.choice([1, 1, 2, 4])):
                at = draw.randrange(len(frame))
                frame[at : at + draw.choice([0, 1, 1, 8])] = draw.randbytes(draw.choice([0, 1, 1, 8]))
                frame = frame or bytearray(b"V")
            cores[draw.choice([1, 2, 3])].receive(bytes(frame), cores.now)
            cores.run(draw.choice([0, 100, 2000, 100_000]))


def test_who_hears_of_a_younger_life_of_its_own_says_so() -> None:
    cores = Cores(2)
    mine = bytes([0x92, 0x01, 0xCD]) + (1001).to_bytes(2, "big")  # msgpack of (node 1, its incarnation)
    join = next(frame for sender, frame in cores.frames if sender == 2 and frame[3] == 3 and mine in frame)
    view = cores[1].view
    cores[1].receive(join.replace(mine, mine[:3] + (2001).to_bytes(2, "big")), cores.now)
    notes = [o for o in cores[1].take_outputs() if getattr(o, "name", "") == "bad_frame"]
    assert "node 2 at 127.0.0.1:2 knows a younger life of node id 1: the id is used twice" in notes[0].fields["why"]
    cores.run(2_000_000)
    assert cores[1].view is view


# ---------------------------------------------------------------- daemons


@pytest.mark.live
def test_counters_of_real_daemons_agree(unharmed: LocalCluster) -> None:
    def sent() -> list[int]:
        return [counters(unharmed, name)["mcast_tx"] for name in "abc"]

    with dlm.connect(unharmed["a"].url) as one, dlm.connect(unharmed["b"].url) as two:
        with one.lock("mine"):
            pass
        claimed, fast = sent(), status(unharmed, "a")["services"]["dlm"]["fast"]
        for _ in range(200):
            one.acquire("mine").release(wait=True)
        assert sent() == claimed
        assert status(unharmed, "a")["services"]["dlm"]["fast"] - fast == 400

        keep = [each.acquire("ours", dlm.Mode.NL) for each in (one, two)]
        before = sent()
        for _ in range(50):
            two.acquire("ours").release(wait=True)
        after = sent()
        assert [now - then for now, then in zip(after, before, strict=True)] == [0, 100, 0]
        for held in keep:
            held.release(wait=True)


@pytest.mark.live
def test_an_idle_ring_of_daemons_sends_few_frames(unharmed: LocalCluster) -> None:
    def tokens() -> int:
        return counters(unharmed, "b")["orf_token_tx"]

    def rested() -> bool:
        """Whether the ring has come to rest: the node's sends are a hold apart."""
        turns = status(unharmed, "b")["io"]["frames_sent"]
        return turns == status(unharmed, "b")["io"]["frames_sent"]

    until(rested, "an idle ring")
    first, began = tokens(), status(unharmed, "b")["since_us"]
    until(lambda: tokens() >= first + 5, "five more rotations")
    spent = status(unharmed, "b")["since_us"] - began
    assert spent >= 4 * Timing().hold  # a ring that did not hold its token would turn a thousand times faster
