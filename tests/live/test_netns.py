"""Partitions of a real network: cables pulled, one direction lost in silence, and everything put together again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import dlm
from tests.live.helpers import status, until, works
from vsync import client
from vsync.bench.local import follow, transports
from vsync.bench.netns import NetnsCluster, missing
from vsync.bench.subject import Watch
from vsync.client import Group
from vsync.clock import boot_us
from vsync.errors import NotConnected
from vsync.events import Message
from vsync.types import Timing

MISSING = missing()
pytestmark = [
    pytest.mark.live,
    pytest.mark.long,
    pytest.mark.skipif(bool(MISSING), reason=f"network namespaces: {MISSING}"),
]

DEFAULT = Timing()
SLACK_US = 300_000  #: what a loaded machine with two processors adds


@pytest.fixture(params=transports())
def net(request: pytest.FixtureRequest) -> Iterator[NetnsCluster]:
    with NetnsCluster(transport=request.param) as cluster:
        yield cluster


def members(net: NetnsCluster, name: str) -> list[str]:
    """Who is in a node's present view, as it says itself."""
    view = (net.status(name) or {}).get("view") or {"members": []}
    return [member["name"] for member in view["members"]]


def alone(net: NetnsCluster, name: str) -> Callable[[], bool]:
    return lambda: members(net, name) == [name] and not status(net, name)["view"]["primary"]


def spent_us(net: NetnsCluster, watchers: str, wanted: str, act: Callable[[], Any]) -> int:
    """From the act until the last watcher was told of a view of exactly ``wanted``."""
    watch = Watch(watchers)
    sessions = [client.connect(net[name].url, "test") for name in watchers]
    try:
        for name, session in zip(watchers, sessions, strict=True):
            follow(name, session, watch)
        watch.until(net.names, 20)
        began = boot_us()
        act()
        return watch.until(wanted, 30) - began
    finally:
        for session in sessions:
            session.close()


@pytest.mark.parametrize("victim", ["c", "a"], ids=["a member", "the representative"])
@pytest.mark.parametrize("way", ["cut", "unplug"])
def test_a_cut_cable_costs_a_token_timeout_and_a_consensus_at_most(
    net: NetnsCluster, victim: str, way: str
) -> None:
    rest = "abc".replace(victim, "")
    spent = spent_us(net, rest, rest, lambda: getattr(net, way)(victim))
    assert spent < DEFAULT.token + DEFAULT.consensus + SLACK_US
    assert status(net, rest[0])["view"]["primary"]
    until(alone(net, victim), "the view of the one that was cut off")


def test_partition_heal_and_what_becomes_of_locks(net: NetnsCluster) -> None:
    with dlm.connect(net["a"].url) as here, dlm.connect(net["c"].url) as there:
        kept, lost = here.acquire("kept", timeout=20), there.acquire("lost", timeout=20)
        fences = kept.fence, lost.fence
        net.cut("c")
        net.wait_view("ab")
        assert kept.valid
        until(alone(net, "c"), "the view of the one that was cut off")
        until(lambda: not lost.valid, "the end of its lease")  # before anybody else can have it
        again = here.acquire("lost", timeout=20)
        assert not lost.valid
        assert again.fence > fences[1]

        net.mend("c")
        net.wait_view("abc", 30)
        assert lost.wait_lost(20)
        assert kept.valid
        assert again.valid
        assert kept.fence == fences[0]
        again.release(wait=True)
        assert there.acquire("lost", timeout=20).fence > again.fence
    works(net)


def test_nobody_has_a_majority_and_all_come_back(net: NetnsCluster) -> None:
    with dlm.connect(net["b"].url) as locks:
        held = locks.acquire("x", timeout=20)
        for name in net.names:
            net.cut(name)
        for name in net.names:
            until(alone(net, name), f"node {name} alone")
        until(lambda: not held.valid, "the end of the lease")
        fence = held.fence
        for name in net.names:
            net.mend(name)
        net.wait_view("abc", 30)
        until(lambda: held.valid or held.lost_reason, "what becomes of the lock")
        # Lost only if the two others found each other first: they were a majority without b.
        assert held.valid or "evicted" in str(held.lost_reason)
        assert held.fence == fence
    works(net)


def pair(net: NetnsCluster) -> bool:
    """Whether two of the nodes go on together, neither without the other, and the third is alone."""
    views = {name: members(net, name) for name in net.names}
    sizes = sorted(len(view) for view in views.values())
    return sizes == [1, 2, 2] and all(views[other] == view for view in views.values() for other in view)


def test_a_silent_one_way_cut_of_the_tokens_way_leaves_a_pair(net: NetnsCluster) -> None:
    """c does not reach a, and nobody is told; b hears both, and may be with one of them only."""
    with dlm.connect(net["b"].url) as locks, locks.lock("x", timeout=20) as held:
        net.deafen("c", "a")
        until(lambda: pair(net), "a pair and one alone", 30)
        assert status(net, "b")["view"]["primary"]
        assert len(members(net, "b")) == 2, "b hears everybody, and is in the pair"
        assert held.valid
        settled = status(net, "b")["view"]["seq"]
        until(lambda: status(net, "b")["since_us"] > 3 * DEFAULT.token, "a pair that stays", 60)
        assert status(net, "b")["view"]["seq"] <= settled + 4  # no storm of views
        net.undeafen("c", "a")
        net.wait_view("abc", 40)
        assert held.valid
    works(net)


def test_a_silent_one_way_cut_off_the_tokens_way_loses_no_message(net: NetnsCluster) -> None:
    """a does not reach c, but the token need not go that way: b repairs what c misses, or a pair goes on."""
    with client.connect(net["a"].url) as session, client.connect(net["c"].url) as other:
        sender, receiver = session.join("g"), other.join("g")
        got: list[bytes] = []
        threading.Thread(target=collect, args=(receiver, got), daemon=True).start()
        until(lambda: len(members(net, "c")) == 3, "the ring")
        net.deafen("a", "c")
        sent = [b"%d" % number for number in range(50)]
        for message in sent:
            sender.send(message)
        until(lambda: got == sent or pair(net), "all messages at c, or a view without it", 30)
        net.undeafen("a", "c")
        net.wait_view("abc", 40)
    works(net)


def collect(group: Group, into: list[bytes]) -> None:
    """The messages of a group, until its session ends."""
    with contextlib.suppress(NotConnected):
        for event in group:
            if isinstance(event, Message):
                into.append(event.data)


def test_merge_while_both_sides_are_busy(net: NetnsCluster) -> None:
    with client.connect(net["a"].url) as session, client.connect(net["c"].url) as other:
        one, two = session.join("busy"), other.join("busy")
        net.cut("c")
        net.wait_view("ab")
        until(alone(net, "c"), "the view of the one that was cut off")
        net.mend("c")
        number = 0
        while members(net, "a") != ["a", "b", "c"]:
            one.send(b"%d" % number + bytes(1000))
            two.send(b"%d" % number + bytes(1000))
            number += 1
            assert number < 100_000
        net.wait_view("abc", 30)
    assert number > 0
