"""What one operation may cost, counted and not timed: messages, frames, steps of the program, memory that stays.

``test_frames.py`` has single operations exactly; here are those that many are made of. All is on a virtual clock,
so that a count is the same on every machine. *Steps* are calls of functions of the two packages, and calls that
these make to built-in ones; versions of Python differ a little in them, so the bounds have a third of room.
"""

from __future__ import annotations

import gc
import itertools
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import msgpack
import pytest

import dlm
import vsync
from dlm.service import DlmService
from tests.dlm_client.conftest import FakeChannel
from tests.live.cores import Cores
from tests.vsync.engine.harness import Talk
from vsync.events import messages_of
from vsync.outgoing import Outgoing

NL, EX = 0, 5
TEN = [b"account/%d" % n for n in range(10)]
HOMES = tuple(str(Path(package.__file__ or "").parent) for package in (dlm, vsync))


def steps(act: Callable[[], object]) -> int:
    """How many there are in ``act``."""
    count = 0

    def seen(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call") and frame.f_code.co_filename.startswith(HOMES)

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        act()
    finally:
        sys.setprofile(before)
    return count


def kept_blocks(act: Callable[[], object]) -> int:
    """Blocks of memory that are there after ``act`` and were not before."""
    gc.collect()
    before = sys.getallocatedblocks()
    act()
    gc.collect()
    return sys.getallocatedblocks() - before


def shared_or_private(keeper: int) -> Cores:
    """Three nodes; a name that is shared with ``keeper``, which has an NL lock on it, or private to node 1."""
    cores = Cores(3)
    if keeper:
        assert "fence" in cores.call(keeper, "dlm", "lock", h=1, name=b"n", mode=NL)
    pairs(cores, 10)
    return cores


def pairs(cores: Cores, count: int) -> None:
    """So many locks and unlocks at node 1, one after the other, each answered."""
    for h in range(1000, 1000 + count):
        assert "fence" in cores.call(1, "dlm", "lock", h=h, name=b"n", mode=EX)
        assert cores.call(1, "dlm", "unlock", h=h) == {}
        cores.answers.clear()
        cores.frames.clear()


def messages(cores: Cores) -> int:
    """Ordered messages of all nodes so far."""
    return sum(cores.messages(node) for node in cores.cores)


# ---------------------------------------------------------------- messages


@pytest.mark.parametrize(("keepers", "each"), [([], 0), ([2], 1), ([2, 3], 1)])
def test_ten_names_at_once_cost_what_one_costs(keepers: list[int], each: int) -> None:
    """One message to take them and one to give them back, or none, if they are private."""
    cores = Cores(3)
    for node in keepers:
        for h, name in enumerate(TEN, 1):
            assert "fence" in cores.call(node, "dlm", "lock", h=h, name=name, mode=NL)
    costs = []
    for h in (100, 200, 300, 400):
        before = messages(cores)
        assert "code" not in cores.call(1, "dlm", "lock_all", h=h, locks=[(name, EX) for name in TEN])
        taken = messages(cores)
        assert cores.call(1, "dlm", "unlock_all", locks=[{"h": h + n} for n in range(10)]) == {}
        costs.append((taken - before, messages(cores) - taken))
    assert costs[1:] == [(each, each)] * 3  # the first time they become known to the node, or shared


@pytest.mark.parametrize("keeper", [0, 2])
def test_a_pair_does_not_depend_on_how_many_names_there_are(keeper: int) -> None:
    few, many = shared_or_private(keeper), shared_or_private(keeper)
    for h in range(10_000, 12_000):
        assert "fence" in many.call(2, "dlm", "lock", h=h, name=b"other/%d" % h, mode=EX)
    calls, sent = [], []
    for cores in (few, many):
        pairs(cores, 1)
        before = cores.messages(1)
        calls.append(steps(partial(pairs, cores, 20)))
        sent.append(cores.messages(1) - before)
    assert sent[0] == 40 * (keeper > 0)
    assert sent[1] - sent[0] in (0, 1)  # a checksum, after so many messages more
    assert calls[1] < 1.5 * calls[0]  # 2,000 names more; it is not to the step the same in every run


# ---------------------------------------------------------------- frames


def test_a_lone_talker_sends_one_packet_a_message_and_few_tokens() -> None:
    story = Talk()
    story.talk(1, 20)
    before = story.counter(1, "mcast_tx")
    story.sent.clear()
    story.talk(1, 300)
    assert story.counter(1, "mcast_tx") - before == 300
    assert story.sent["DATA"] == 2 * 300  # to two others each, never twice
    assert set(story.sent) == {"DATA", "TOKEN"}
    assert story.sent["TOKEN"] <= 300 / 3  # without lingering there are three for each message


def test_what_is_submitted_together_travels_together() -> None:
    story = Talk()
    story.sent.clear()
    before = story.counter(1, "mcast_tx")
    story.do("submit 1 " + " ".join(["x" * 64] * 1000))
    story.do("run 100")
    packets = story.counter(1, "mcast_tx") - before
    assert story.orders[3] == [b"x" * 64] * 1000
    assert packets <= 1000 * 72 // story.config(1).packet_bytes + 2  # and one for what is there first
    assert story.sent["DATA"] == 2 * packets


def test_an_idle_ring_sends_less_than_twenty_frames_a_second() -> None:
    """A rotation of three tokens each hold (180 ms), however many locks there are."""
    cores = Cores(3)
    for h in range(1, 101):
        cores.call(1, "dlm", "lock", h=h, name=b"%d" % h, mode=EX)
    cores.run(2_000_000)
    cores.sent.clear()
    cores.run(60_000_000)
    assert 0 < cores.sent.total() <= 60 * 20


# ---------------------------------------------------------------- steps and memory


def test_steps_of_a_private_pair() -> None:
    """At the owner's core, without the way to it: there are no messages."""
    cores = shared_or_private(0)
    cores.run(1_000_000)
    assert 50 < steps(partial(pairs, cores, 100)) / 100 <= 260


def test_steps_of_a_shared_pair() -> None:
    """Of all three cores: two messages, and eight turns of the token in this world without delays."""
    cores = shared_or_private(2)
    assert 500 < steps(partial(pairs, cores, 100)) / 100 <= 4600


def test_steps_of_an_ordered_message() -> None:
    """Of all three engines, one message at a time."""
    story = Talk()
    story.talk(1, 20)
    assert 50 < steps(partial(story.talk, 1, 300)) / 300 <= 265


def test_steps_of_a_message_among_many() -> None:
    """The same, where a thousand are submitted at once: what a packet costs is shared by those in it."""
    story = Talk()

    def burst() -> None:
        story.do("submit 1 " + " ".join(["x" * 64] * 1000))
        story.do("run 100")

    burst()
    assert 5 < steps(burst) / 1000 <= 28


def client_pairs(count: int, cache: bool) -> Callable[[], None]:
    """So many pairs of a program, at its side of the session."""
    channel, fences = FakeChannel(), itertools.count(1 << 32, 4096)
    plain = channel.script["lock"]
    channel.script["lock"] = lambda args: {
        **plain(args), "fence": next(fences), "fences": args.get("fences", 1)
    }  # fmt: skip
    locks = dlm.Client.over(channel, clock_us=lambda: channel.now)

    def act() -> None:
        for _ in range(count):
            locks.acquire("x", cache=cache).release()

    act()
    return act


def test_steps_of_a_pair_in_the_program() -> None:
    assert 20 < steps(client_pairs(100, cache=False)) / 100 <= 84


def test_steps_of_a_pair_of_a_lock_that_is_kept() -> None:
    assert 5 < steps(client_pairs(100, cache=True)) / 100 <= 36


def test_steps_of_a_message_in_the_program() -> None:
    """Sent among many, and taken among many."""
    out = Outgoing(lambda batch, order: Future())

    def send() -> None:
        for _ in range(500):
            out.add(b"x" * 64, "agreed", None)

    send()
    assert 2 < steps(send) / 500 <= 9.3
    batch = msgpack.packb([b"x" * 64] * 500)
    sender = {"node": 1, "session": 2, "name": "a"}
    pushed = {"group": "g", "sender": sender, "seq": "1.8:7", "batch": batch}
    assert 0 < steps(lambda: list(messages_of(pushed))) / 500 <= 2.8


@pytest.mark.parametrize("keeper", [0, 2])
def test_pairs_leave_nothing_behind(keeper: int) -> None:
    cores = shared_or_private(keeper)
    for core in cores.cores.values():
        service = core.services[-1]
        assert isinstance(service, DlmService)
        history = service.table.history  # which keeps what was done last
        history.shared, history.own, history.late = (deque[tuple[Any, ...]](maxlen=20) for _ in range(3))
    pairs(cores, 300)
    assert kept_blocks(partial(pairs, cores, 500)) < 500 / 2


def test_messages_leave_nothing_behind() -> None:
    story = Talk()

    def talk() -> None:
        story.talk(1, 500, ms=2000)
        story.orders.clear()
        story.times.clear()
        story.lines.clear()

    talk()
    assert kept_blocks(talk) < 500 / 2
