"""The parts of the simulator: time, links, disks, and a node that runs a (fake) core."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from vsync.engine.outputs import Note, Persist, Send, Stopped
from vsync.service import Credentials, Service
from vsync.testing import Options, SimCluster, Violation, draw, run
from vsync.testing.disk import Disk
from vsync.testing.nemesis import Nemesis
from vsync.testing.network import Network
from vsync.testing.options import LinkOptions
from vsync.testing.plugin import Plugin
from vsync.testing.scheduler import Scheduler
from vsync.testing.trace import Crashed, Noted
from vsync.types import ClusterConfig, View


class FakeCore:
    """Sends what it is asked to send, notes what it receives, wants to be woken at one time."""

    def __init__(
        self,
        config: ClusterConfig,
        incarnation: int,
        services: Sequence[Service],
        stored: bytes | None,
        start_seq: int,
    ) -> None:
        self.config, self.incarnation, self.stored = config, incarnation, stored
        self.view: View | None = None
        self.got: list[tuple[bytes, int]] = []
        self.fired: list[int] = []
        self.deadline: int | None = None
        self.out: list[Any] = []

    def start(self, now: int) -> None:
        self.out.append(Note("started", {"stored": self.stored}))

    def receive(self, frame: bytes, now: int) -> None:
        if frame == b"poison":
            raise IndexError("out of range")
        self.got.append((frame, now))

    def fire(self, now: int) -> None:
        self.fired.append(now)
        self.deadline = None

    def next_deadline(self) -> int | None:
        return self.deadline

    def open_session(self, session: int, who: Credentials, now: int) -> None:
        pass

    def close_session(self, session: int, now: int) -> None:
        pass

    def request(self, session: int, rid: int, service: str, verb: str, args: Mapping[str, Any], now: int) -> None:
        self.out.extend(args["outputs"])
        self.deadline = args.get("deadline")

    def peer_gone(self, node: int, evidence: str, now: int) -> None:
        self.out.append(Note("gone", {"node": node}))

    def leave(self, now: int) -> None:
        self.out.append(Stopped("left"))

    def take_outputs(self) -> list[Any]:
        out, self.out = self.out, []
        return out

    def status(self) -> dict[str, Any]:
        return {}


def fakes(n: int = 3, **more: Any) -> SimCluster:
    return SimCluster(n=n, core_factory=FakeCore, **more)


def tell(cluster: SimCluster, node: int, *outputs: Any, deadline: int | None = None) -> None:
    cluster[node].request(1, 0, "x", "x", {"outputs": outputs, "deadline": deadline})


def frames(cluster: SimCluster, node: int) -> list[bytes]:
    return [frame for frame, _ in cluster[node].core.got]  # type: ignore[attr-defined]


class TestScheduler:
    def test_events_come_in_order_of_time_then_of_scheduling(self) -> None:
        seen: list[str] = []
        scheduler = Scheduler()
        for time, name in ((20, "c"), (10, "a"), (10, "b")):
            scheduler.at(time, seen.append, name)
        while scheduler.step(15):
            pass
        assert seen == ["a", "b"]
        assert scheduler.now == 15
        scheduler.step(30)
        assert seen == ["a", "b", "c"]
        assert scheduler.now == 20

    def test_the_past_is_now(self) -> None:
        scheduler = Scheduler()
        scheduler.step(100)
        seen: list[int] = []
        scheduler.at(5, lambda: seen.append(scheduler.now))
        scheduler.step(200)
        assert seen == [100]


def arrivals(options: LinkOptions, count: int = 300, seed: int = 1) -> list[tuple[int, bytes]]:
    """When which of ``count`` frames, sent 100 µs apart, arrive at node 2."""
    scheduler = Scheduler()
    got: list[tuple[int, bytes]] = []
    network = Network(scheduler, options, seed, lambda s, d, frame: got.append((scheduler.now, frame)))
    for i in range(count):
        scheduler.at(i * 100, network.send, 1, 2, i.to_bytes(4, "big"))
    while scheduler.step(10**9):
        pass
    return got


class TestNetwork:
    def test_a_plain_link_delays_and_keeps_order(self) -> None:
        got = arrivals(LinkOptions(delay_low=1_000, delay_high=5_000))
        assert [frame for _, frame in got] == [i.to_bytes(4, "big") for i in range(300)]
        assert all(time >= int.from_bytes(frame, "big") * 100 + 1_000 for time, frame in got)

    def test_loss(self) -> None:
        assert 150 < len(arrivals(LinkOptions(loss=0.3))) < 270

    def test_duplicates(self) -> None:
        got = [frame for _, frame in arrivals(LinkOptions(duplicate=0.2))]
        assert len(got) > len(set(got)) == 300

    def test_reordering(self) -> None:
        got = [frame for _, frame in arrivals(LinkOptions(reorder=0.2))]
        assert sorted(got) == [i.to_bytes(4, "big") for i in range(300)]
        assert got != sorted(got)

    def test_the_seed_decides(self) -> None:
        options = LinkOptions(loss=0.1, duplicate=0.1, reorder=0.1)
        assert arrivals(options, seed=3) == arrivals(options, seed=3)
        assert arrivals(options, seed=3) != arrivals(options, seed=4)

    def test_cuts(self) -> None:
        with fakes(4) as cluster:
            cluster.partition({1, 2}, {3})
            for node in (1, 2, 3, 4):
                tell(cluster, node, Send(tuple(n for n in (1, 2, 3, 4) if n != node), b"%d" % node))
            cluster.advance(1)
            assert [frames(cluster, n) for n in (1, 2, 3, 4)] == [[b"2"], [b"1"], [], []]
            cluster.heal()
            cluster.network.cut(1, 2)
            tell(cluster, 1, Send((2, 3), b"one way"))
            tell(cluster, 2, Send((1,), b"back"))
            cluster.advance(1)
            assert frames(cluster, 2) == [b"1"]
            assert frames(cluster, 3) == [b"one way"]
            assert frames(cluster, 1) == [b"2", b"back"]

    @pytest.mark.parametrize("lost", [True, False])
    def test_what_is_under_way_when_the_cut_comes(self, lost: bool) -> None:
        with fakes(2, options=Options(nodes=2, links=LinkOptions(cut_in_flight=lost))) as cluster:
            tell(cluster, 1, Send((2,), b"x"))
            cluster.partition()
            cluster.advance(1)
            assert frames(cluster, 2) == ([] if lost else [b"x"])


class TestNode:
    def test_a_record_survives_a_crash(self) -> None:
        with fakes() as cluster:
            tell(cluster, 1, Persist(b"r1"))
            cluster.crash(1)
            assert not cluster[1].up
            cluster.restart(1)
            assert cluster[1].core.stored == b"r1"  # type: ignore[attr-defined]
            assert cluster[1].incarnation == 2
            cluster[1].disk.wipe()
            cluster.crash(1)
            cluster.restart(1)
            assert cluster[1].core.stored is None  # type: ignore[attr-defined]

    def test_a_disk_keeps_the_last_record(self) -> None:
        disk = Disk()
        assert disk.record is None
        disk.write(b"a")
        disk.write(b"b")
        assert [disk.record, disk.writes] == [b"b", 2]

    def test_a_crash_falls_between_two_outputs(self) -> None:
        """Over many seeds every cut through [Send, Persist, Send, Persist, Note] is seen, and never a hole."""
        seen = set()
        for seed in range(300):
            with fakes(2, seed=seed) as cluster:
                cluster[1].crash_soon()
                tell(
                    cluster,
                    1,
                    Send((2,), b"a"),
                    Persist(b"1"),
                    Send((2,), b"b"),
                    Persist(b"2"),
                    Note("end"),
                )
                cluster.advance(5)
                assert not cluster[1].up
                ended = any(isinstance(e, Noted) and e.name == "end" for e in cluster.trace.events)
                seen.add((b"".join(frames(cluster, 2)), cluster[1].disk.record, ended))
        order = [
            (b"", None, False),
            (b"a", None, False),
            (b"a", b"1", False),
            (b"ab", b"1", False),
            (b"ab", b"2", False),
            (b"ab", b"2", True),
        ]
        assert seen == set(order)

    def test_frames_and_requests_wait_for_a_stopped_process(self) -> None:
        with fakes(2) as cluster:
            cluster[2].pause()
            tell(cluster, 1, Send((2,), b"x"))
            tell(cluster, 2, Send((1,), b"y"))
            cluster.advance(3)
            assert frames(cluster, 2) == []
            cluster[2].resume()
            cluster.advance(1)
            assert frames(cluster, 2) == [b"x"]
            assert frames(cluster, 1) == [b"y"]

    def test_timers_fire_by_the_nodes_own_clock(self) -> None:
        with fakes(3, options=Options(nodes=3, drift_ppm=10_000, seed=5)) as cluster:
            for node in cluster.nodes.values():
                tell(cluster, node.id, deadline=node.clock() + 2_000_000)
            began = {node.id: node.clock() for node in cluster.nodes.values()}
            cluster.advance(1.9)
            assert not any(node.core.fired for node in cluster.nodes.values())  # type: ignore[attr-defined]
            cluster.advance(0.2)
            for node in cluster.nodes.values():
                fired = node.core.fired  # type: ignore[attr-defined]
                assert len(fired) == 1
                assert 0 <= fired[0] - began[node.id] - 2_000_000 <= 2
            assert len({cluster[n].clock(10**7) - cluster[n].clock(0) for n in (1, 2, 3)}) == 3

    def test_an_earlier_deadline_replaces_a_later_one(self) -> None:
        with fakes(1) as cluster:
            node = cluster[1]
            tell(cluster, 1, deadline=node.clock() + 900_000)
            tell(cluster, 1, deadline=node.clock() + 100_000)
            cluster.advance(2)
            assert len(node.core.fired) == 1  # type: ignore[attr-defined]

    def test_leaving_ends_the_process(self) -> None:
        with fakes(1) as cluster:
            cluster[1].leave()
            assert not cluster[1].up
            assert isinstance(cluster.trace.events[-1], Crashed)
            assert "left" in cluster.trace.events[-1].how

    def test_a_core_that_raises_is_a_finding(self) -> None:
        with fakes(2) as cluster:
            tell(cluster, 1, Send((2,), b"poison"))
            with pytest.raises(Violation, match=r"EVS-E28.*IndexError"):
                cluster.advance(1)


class TestOptions:
    def test_the_same_seed_draws_the_same(self) -> None:
        assert draw(7, 5) == draw(7, 5)
        assert draw(7, 5) != draw(8, 5)

    def test_swarm(self) -> None:
        """Each fault is off in some runs and on in others; each run has at least one."""
        drawn = [draw(seed, 5) for seed in range(100)]
        for name in ("crash", "leave", "partition", "one_way", "pause"):
            weights = [getattr(options, name) for options in drawn]
            assert 20 < sum(w > 0 for w in weights) < 80, name
        assert all(o.crash or o.leave or o.partition or o.one_way or o.pause for o in drawn)
        assert 0 < sum(o.links.loss > 0 for o in drawn) < 100

    def test_options_are_printed_in_full(self) -> None:
        text = " ".join(draw(7, 5).lines())
        assert "seed=7" in text
        assert "links.loss=" in text
        assert "timing.token=" in text


def test_workloads_stop_before_what_is_broken_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed 46 of the locks, 3 nodes: a node that went on at the last moment was a reason for one more crash."""
    order: list[str] = []

    class Watching(Plugin):
        def settle(self, cluster: SimCluster) -> None:
            order.append("settle")

    def mend(nemesis: Nemesis, real: Callable[[Nemesis], None] = Nemesis.mend) -> None:
        order.append("mend")
        real(nemesis)

    monkeypatch.setattr(Nemesis, "mend", mend)
    assert run(draw(1, 3), plugins=[Watching()]).violation is None
    assert order == ["settle", "mend"]
