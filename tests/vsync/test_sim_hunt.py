"""What surrounds a run: nested faults, hunting in several processes, shrinking, options as text, bounds."""

from __future__ import annotations

import time
from dataclasses import replace
from random import Random

import pytest

from tests.seeds import commit_seed, hunt_for
from vsync.testing import Options, Plugin, SimCluster, Violation, draw, run
from vsync.testing.bounds import check_buffers, check_installed
from vsync.testing.evs_views import ViewRules, _Configuration, _Process
from vsync.testing.hunt import STUCK, coverage, hunt
from vsync.testing.main import main
from vsync.testing.node import SimNode
from vsync.testing.plugin import no_plugins
from vsync.testing.rules import CELLS, TYPES, Rule, draw_rule
from vsync.testing.shrink import parse, shrink, spell
from vsync.types import Member, RingId
from vsync.wire import FrameType


class Saboteur(Plugin):
    """Breaks a rule at the third crash of any node."""

    def __init__(self) -> None:
        self.crashes = 0

    def stopped(self, node: SimNode) -> None:
        self.crashes += 1
        if self.crashes == 3:
            raise Violation("TEST-3", "three are enough")


def saboteurs(seed: int) -> tuple[Saboteur]:
    return (Saboteur(),)


class Sleeper(Plugin):
    def begin(self, cluster: SimCluster) -> None:
        time.sleep(600)


def sleepers(seed: int) -> tuple[Plugin, ...]:
    return (Sleeper(),) if seed == 2 else ()


class TestRules:
    def test_a_rule_waits_for_its_frame(self) -> None:
        rule = Rule(kind=FrameType.TOKEN, state="recovery", side="sent", action="drop", left=2)
        token, data = b"VS\x01\x02", b"VS\x01\x01"
        assert not rule.fires(data, "recovery", "sent", 1)
        assert not rule.fires(token, "operational", "sent", 1)
        assert not rule.fires(token, "recovery", "received", 1)
        assert not rule.fires(token, "recovery", "sent", 1)
        assert rule.fires(token, "recovery", "sent", 2)

    def test_the_names_are_those_of_the_wire(self) -> None:
        """NEWS is left out: it is no step of the ring, and is sent again whatever becomes of it."""
        assert [FrameType[name] for name in TYPES] == [kind for kind in FrameType if kind is not FrameType.NEWS]

    def test_every_type_state_and_action_is_drawn(self) -> None:
        rng = Random(1)
        drawn = [draw_rule(rng, 5) for _ in range(4_000)]
        assert {r.name for r in drawn} == set(CELLS)

    def test_they_meet_frames_in_runs(self) -> None:
        total = hunt(range(1, 13), 4, no_plugins)
        assert not total.failed
        assert total.fired
        table = coverage(total.fired)
        assert table[1].split()[:4] == ["DATA", "sent", "never", "never"]
        assert table[1 + 2 * len(TYPES)].startswith(f"{len(total.fired)} of {len(CELLS)} met, not met:")


class TestHunt:
    def test_processes_find_the_same(self) -> None:
        one = hunt(range(1, 9), 3, saboteurs, keep_going=True)
        two = hunt(range(1, 9), 3, saboteurs, keep_going=True, jobs=2)
        assert one.seeds == two.seeds == 8
        assert one.failed == two.failed != []
        assert one.fired == two.fired

    def test_it_ends_at_the_first_failure(self) -> None:
        assert len(hunt(range(1, 30), 3, saboteurs).failed) == 1


    def test_numbers_of_nodes_by_seed(self) -> None:
        lines: list[str] = []
        hunt(range(3, 6), (2, 4), no_plugins, chaos=200_000, told=lines.append)
        hashes = [run(draw(seed, n, 200_000)).trace.hash for seed, n in ((3, 4), (4, 2), (5, 4))]
        assert [line.split()[-1] for line in lines] == hashes

    def test_a_run_that_does_not_end_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vsync.testing.hunt.PATIENCE_S", 4.0)
        total = hunt(range(1, 5), 2, sleepers, jobs=2)
        assert total.rules == {total.failed[0]: STUCK}


class TestSelection:
    """What the suite runs of the seeds, as ``tests/seeds.py`` has it."""

    def test_half_are_fixed_and_half_are_of_the_commit(self) -> None:
        told: dict[str, object] = {}
        hunt_for(60, "vsync.testing", no_plugins, (2,), told.__setitem__, most=5)
        fresh = 1_000 + commit_seed()
        assert "10 seeds in" in str(told["seeds"])
        assert f"1 to 5 and, of this commit, {fresh} to {fresh + 4}; no violation" in str(told["seeds"])

    def test_a_failure_says_how_to_see_it_again(self) -> None:
        told: dict[str, object] = {}
        again = r"TEST-3.*\nagain: python -m vsync.testing --seed \d+ --nodes 3"
        with pytest.raises(pytest.fail.Exception, match=again):
            hunt_for(60, "vsync.testing", saboteurs, (3,), told.__setitem__)
        assert "BROKEN: [" in str(told["seeds"])


class TestShrink:
    def test_a_failing_run_gets_shorter(self, capsys: pytest.CaptureFixture[str]) -> None:
        options = replace(draw(5, 5), crash=4, herd=2, fault_interval=50_000)
        first = run(options, saboteurs(5))
        assert first.violation is not None
        told: list[str] = []
        small = shrink(options, saboteurs, 6.0, told.append)
        assert small.violation is not None
        assert small.violation.rule == "TEST-3"
        assert small.events < first.events
        assert told
        again = run(parse(spell(small.options)), saboteurs(small.options.seed))
        assert again.trace.hash == small.trace.hash

    def test_options_survive_their_spelling(self) -> None:
        for seed in range(60):
            assert parse(spell(draw(seed, 4))) == draw(seed, 4)

    @pytest.mark.parametrize("text", ["x=1", "links.x=1", "nodes=many", "timing=slow"])
    def test_nonsense_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError):
            parse(text)

    def test_the_command_line_takes_them(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--options", "seed=3,nodes=2,chaos=300000,crash=1"], "vsync.testing", no_plugins) == 0
        assert "seed 3: ok" in capsys.readouterr().out


class TestBounds:
    def test_e12_left_behind(self) -> None:
        a, b = Member(1, 1), Member(2, 1)
        views = ViewRules()
        views.processes = {a: _Process(), b: _Process()}
        views.configurations[RingId(9, 1)] = _Configuration(a, (a, b), True, came_from={a: (RingId(8, 1), (a,))})
        with pytest.raises(Violation, match=r"EVS-E12.*node 2"):
            check_installed(views)
        del views.processes[b]
        check_installed(views)

    def test_e28_a_buffer_that_grows(self) -> None:
        with SimCluster(n=2) as cluster:
            cluster.settle()
            core = cluster[1].core
            check_buffers(1, core)
            core.engine.queue.extend([(0, b"x")] * 5_000)  # type: ignore[attr-defined]
            with pytest.raises(Violation, match=r"EVS-E28.*send queue"):
                check_buffers(1, core)


class TestFaults:
    def test_a_stopped_clock_goes_on_where_it_stopped(self) -> None:
        with SimCluster(n=2) as cluster:
            cluster.settle()
            node = cluster[1]
            before = node.clock()
            node.pause(frozen=True)
            cluster.advance(3)
            assert node.clock() == before
            node.resume()
            cluster.advance(1)
            assert 990_000 < node.clock() - before < 1_010_000

    def test_a_slow_receiver_takes_its_frames_late(self) -> None:
        with SimCluster(n=3) as cluster:
            cluster.settle()
            cluster[2].slow_down(100_000)
            cluster[1].send(b"x")
            cluster.advance(0.05)
            assert cluster[2].delivered == []
            cluster[2].slow_down(0)
            cluster.advance(1)
            assert cluster[2].delivered == [(1, b"x")]

    def test_a_narrow_path_loses_what_is_large(self) -> None:
        with SimCluster(n=3) as cluster:
            cluster.settle()
            cluster.network.limit(1, 2, 400)
            cluster[1].send(b"small")
            cluster[1].send(size=500)  # 3 has it and sends it to 2
            cluster.run_until(lambda: len(cluster[2].delivered) == 2, 1.0, "both")
            cluster.network.limit(3, 2, 400)
            cluster[1].send(size=500)
            cluster.advance(0.3)
            assert (len(cluster[2].delivered), len(cluster[3].delivered)) == (2, 3)
            cluster.heal()
            cluster.run_until(lambda: len(cluster[2].delivered) == 3, 1.0, "what is large")

    def test_a_rumour_of_death_costs_one_change(self) -> None:
        with SimCluster(n=3) as cluster:
            cluster.settle()
            cluster[1].peer_gone(3)
            cluster.advance(0.01)
            cluster.settle()
            assert cluster[1].view is not None
            assert cluster[1].view.nodes == (1, 2, 3)

    def test_all_at_once_without_disks(self) -> None:
        options = Options(seed=2, nodes=4, chaos=3_000_000, herd=1, lost_disk=1.0, fault_interval=500_000)
        result = run(options)
        assert result.violation is None
        assert result.faults > 0
