"""The chain of primary views under the worst timing: rings that break at the very end, crashes there, wiped disks.

Production cores in the simulator, whose checkers judge every view (QUO-Q1, CHAIN-K8); here the moment of each fault
is chosen. Scenario names are those of the pitfalls: C3, C5, C7, C8, C11, rules K7 and K8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vsync.engine.record import Record
from vsync.quorum import Says, newest_mark
from vsync.testing.cluster import SimCluster
from vsync.testing.options import LinkOptions, quiet, scaled
from vsync.testing.trace import Noted, Viewed
from vsync.types import QuorumConfig, RingId, View
from vsync.wire import MAX_RING_SEQ


class Chain:
    """A cluster with short timers, whose rings can be cut at an exact moment."""

    def __init__(self, nodes: int = 3, start: bool = True, **options: Any) -> None:
        links = LinkOptions(cut_in_flight=True)
        chosen = replace(quiet(1, nodes, scaled(0.2)), links=links, **options)
        self.cluster = SimCluster(options=chosen)
        self.notes: list[tuple[int, str, dict[str, Any]]] = []
        self.cluster.trace.subscribe(Noted, self._note)
        for node in self.cluster.nodes.values():
            node.start()
        if start:
            self.cluster.settle()

    def _note(self, event: Noted) -> None:
        self.notes.append((event.who.node, event.name, event.fields))

    def engine(self, node: int) -> Any:
        return self.cluster[node].core.engine  # type: ignore[attr-defined]

    def view(self, node: int) -> View:
        view = self.cluster[node].core.view
        assert view is not None
        return view

    def views(self, node: int) -> list[RingId]:
        """The regular views of the node's present process."""
        return [view.id for view in self.cluster[node].recorder.views if not view.transitional]

    def until(self, condition: Callable[[], bool]) -> None:
        """Event by event."""
        end = self.cluster.scheduler.now + 20_000_000
        while not condition():
            assert self.cluster.scheduler.step(end), "it does not come to that"

    def together(self, *nodes: int, primary: bool | None = None) -> View:
        """These are left alone with each other until they have one view."""
        others = set(self.cluster.nodes) - set(nodes)
        self.cluster.heal()
        self.cluster.partition(set(nodes), *({other} for other in others))
        self.until(lambda: all(self._in(node, nodes) for node in nodes))
        view = self.view(nodes[0])
        assert primary is None or view.primary == primary, self.why(nodes[0])
        return view

    def _in(self, node: int, nodes: tuple[int, ...]) -> bool:
        return (
            self.cluster[node].core.view is not None
            and self.view(node).nodes == nodes
            and self.engine(node).state.value == "operational"
        )

    def why(self, node: int) -> str:
        verdict: str = self.cluster[node].core.status()["quorum"]["why"]
        return verdict

    def reached(self, node: int) -> bool:
        """Whether it has come to the end of a recovery and has not installed yet."""
        forming = self.engine(node).forming
        return forming is not None and forming.reached > 0

    def form(self, *nodes: int) -> None:
        """Nobody else can be heard from now on; who was in a ring with more has to form a new one."""
        self.cluster.heal()
        others = ({other} for other in set(self.cluster.nodes) - set(nodes))
        self.cluster.partition(set(nodes), *others)

    def cut(self) -> None:
        """Nobody hears anybody, until all have noticed. They have not rung alone since then."""
        self.cluster.partition(*({node} for node in self.cluster.nodes))
        self.until(lambda: all(self._apart(node) for node in self.cluster.nodes))

    def _apart(self, node: int) -> bool:
        engine = self.engine(node)
        return engine.forming is None and (engine.state.value == "gather" or engine.ring.alone)

    def last_installs(self, *nodes: int) -> tuple[int, int]:
        """Two nodes form a ring, which breaks when one has installed it: that one, and the other."""
        self.form(*nodes)
        installed = self.first_installs(*nodes)
        other = next(node for node in nodes if node != installed)
        self.cut()
        return installed, other

    def first_installs(self, *nodes: int) -> int:
        """Until one of these has installed their ring; the others have reached the end of recovery."""
        self.until(lambda: any(self._in(node, nodes) for node in nodes))
        installed = next(node for node in nodes if self._in(node, nodes))
        assert all(self.reached(node) for node in nodes if node != installed)
        return installed

    def missed_by_3(self) -> RingId:
        """1, 2 and 3 come together; 1 and 2 reach the end of that, 3 does not."""
        self.form()
        self.until(lambda: all(len(self.view(node).nodes) == 1 for node in (1, 2, 3)))
        self.form(1, 2, 3)
        self.until(lambda: self.reached(1) and self.reached(2) and not self.reached(3))
        attempt: RingId = self.engine(2).forming.ring.id
        self.cut()
        return attempt

    def restart(self, node: int, wiped: bool = False) -> None:
        self.cluster.crash(node)
        if wiped:
            self.cluster[node].disk.wipe()
        self.cluster.restart(node)

    def stored(self, node: int) -> Record:
        record = self.cluster[node].disk.record
        assert record is not None
        return Record.decode(record)

    def resolved(self, node: int) -> list[tuple[str, bool]]:
        return [(f["ring"], f["real"]) for n, what, f in self.notes if n == node and what == "attempt_resolved"]

    def end(self) -> None:
        """All come together; whatever happened, they go on, and no rule was broken."""
        self.cluster.heal()
        for node in self.cluster.nodes.values():
            node.start()
        self.cluster.settle()
        assert self.view(1).primary
        assert self.cluster.checkers.quorum.chain[-1] == self.view(1).id


class TestC3:
    """A ring breaks between its first and its last installation."""

    def test_real_though_the_companion_is_away(self) -> None:
        """Of four one has installed a primary view when the ring breaks: the others go through it without it."""
        chain = Chain(5)
        chain.form(1, 2, 3, 4)
        installed = chain.first_installs(1, 2, 3, 4)
        attempt = chain.view(installed).id
        others = [node for node in (1, 2, 3, 4) if node != installed]
        view = chain.together(*others, primary=True)
        for node in others:
            assert chain.views(node)[-2:] == [attempt, view.id]
            assert view.entries[node].mark == attempt
            assert chain.resolved(node) == [(str(attempt), True)]
        chain.end()

    def test_real_for_those_who_meet_somebody_else(self) -> None:
        """C3: 1 or 2 may have given away what 3 holds; so the other must not go on with the state that 3 has."""
        chain = Chain()
        installed, other = chain.last_installs(1, 2)
        attempt = chain.view(installed).id
        view = chain.together(*sorted((other, 3)), primary=True)
        assert attempt in chain.views(other)
        assert view.entries[other].mark == attempt > view.entries[3].mark
        chain.end()

    def test_real_and_the_companion_is_there(self) -> None:
        """Both come from the attempt, out of which they go on together."""
        chain = Chain()
        installed, other = chain.last_installs(1, 2)
        attempt = chain.view(installed).id
        view = chain.together(1, 2, primary=True)
        assert chain.views(other)[-2:] == [attempt, view.id] == chain.views(installed)[-2:]
        assert view.joined == ()
        chain.end()

    def test_void_if_one_who_is_here_missed_it(self) -> None:
        """So nobody can have installed it, and its time has not passed for those outside it."""
        chain = Chain()
        attempt = chain.missed_by_3()
        view = chain.together(2, 3, primary=True)
        assert attempt not in chain.views(2)
        assert chain.resolved(2) == [(str(attempt), False)]
        assert view.entries[2].mark == view.entries[3].mark < attempt
        chain.end()

    def test_who_has_learned_that_it_is_void_remembers_that(self) -> None:
        """Found here (seed 336 with changes of the set of nodes): 3, who missed it, tells 2 and then dies."""
        chain = Chain()
        attempt = chain.missed_by_3()
        alone = len(chain.views(1))
        chain.cluster.heal()
        for other in (2, 3):
            chain.cluster.network.cut(1, other)  # 1 hears them, and so does not ring alone soon
        chain.until(lambda: chain.view(2).nodes == (2, 3) and chain.view(3).nodes == (2, 3))
        chain.restart(3)
        chain.cluster.heal()
        chain.until(lambda: all(len(chain.view(node).nodes) == 3 for node in (1, 2)))
        assert len(chain.views(1)) == alone + 1
        assert chain.resolved(1) == chain.resolved(2)[:1] == [(str(attempt), False)]
        assert attempt not in chain.views(1) + chain.views(2)
        chain.end()

    def test_all_reached_it_and_nobody_installed(self) -> None:
        """It stands all the same: nobody can tell."""
        chain = Chain()
        chain.form(1, 2)
        chain.until(lambda: chain.reached(1) and chain.reached(2))
        attempt = chain.engine(1).forming.ring.id
        chain.cut()
        view = chain.together(1, 2, primary=True)
        assert chain.views(1)[-2:] == chain.views(2)[-2:] == [attempt, view.id]
        chain.end()

    def test_not_installed_first_by_who_is_alone(self) -> None:
        """A view of one is not primary; what was reached is stored with it, and holds later."""
        chain = Chain()
        installed, other = chain.last_installs(1, 2)
        attempt = chain.view(installed).id
        assert not chain.together(other).primary
        assert chain.stored(other).mark == attempt
        assert chain.together(*sorted((other, 3)), primary=True).entries[other].mark == attempt
        chain.end()


class TestC11:
    """It breaks at the end, and the next attempt does, too."""

    def test_nested_and_both_real(self) -> None:
        chain = Chain(5)
        chain.form(1, 2, 3, 4)
        chain.until(lambda: all(chain.reached(node) for node in (1, 2, 3, 4)))
        first = chain.engine(1).forming.ring.id
        chain.cut()
        chain.form(1, 2, 3)
        chain.until(lambda: all(chain.reached(node) for node in (1, 2, 3)))
        second = chain.engine(1).forming.ring.id
        assert second > first
        chain.cut()
        view = chain.together(1, 2, 3, primary=True)
        for node in (1, 2, 3):
            assert chain.views(node)[-3:] == [first, second, view.id]
        chain.end()

    def test_nested_and_the_second_void(self) -> None:
        """The first is claimed again: in the second nothing was settled."""
        chain = Chain(5)
        chain.form(1, 2, 3, 4)
        chain.until(lambda: all(chain.reached(node) for node in (1, 2, 3, 4)))
        first = chain.engine(1).forming.ring.id
        chain.cut()
        chain.form(1, 2, 3)
        chain.until(lambda: chain.reached(1) and not chain.reached(3))
        second = chain.engine(1).forming.ring.id
        chain.cut()
        view = chain.together(1, 2, 3, primary=True)
        assert chain.views(1)[-2:] == [first, view.id]
        assert (str(second), False) in chain.resolved(1)
        chain.end()

    def test_known_to_be_void_it_is_not_claimed_again(self) -> None:
        """3 says that it missed the first; when that ring breaks as well and 3 is away, 1 and 2 still know."""
        chain = Chain()
        first = chain.missed_by_3()
        chain.form(1, 2, 3)
        chain.until(lambda: chain.engine(1).state.value == chain.engine(2).state.value == "recovery")
        chain.cut()
        chain.together(1, 2, primary=True)
        assert first not in chain.views(1) + chain.views(2)
        assert chain.resolved(2)[0] == (str(first), False)
        chain.end()


class TestCrash:
    """Stored counts as reached."""

    def broken(self) -> tuple[Chain, int, int, RingId]:
        """1 or 2 works in a view of 1 and 2; the other dies before it has installed it."""
        chain = Chain()
        installed, other = chain.last_installs(1, 2)
        chain.restart(other)
        return chain, installed, other, chain.view(installed).id

    def test_between_commit_and_installation(self) -> None:
        """It has no state, and brings along that 3's is not the newest."""
        chain, _, other, attempt = self.broken()
        view = chain.together(*sorted((other, 3)), primary=True)
        assert view.entries[other].mark == attempt > view.entries[3].mark
        chain.end()

    def test_alone_for_a_while(self) -> None:
        """Found here: a view of its own, which is not primary, made it forget."""
        chain, _, other, attempt = self.broken()
        chain.together(other, primary=False)
        assert chain.together(*sorted((other, 3)), primary=True).entries[other].mark == attempt
        chain.end()

    def test_and_again_in_the_next_attempt(self) -> None:
        """Found here: the next attempt, which 3 knows to be void, had taken the place of the first on the disk."""
        chain, _, other, attempt = self.broken()
        chain.form(other, 3)
        chain.until(lambda: chain.engine(3).forming is not None and len(chain.stored(other).attempts) == 2)
        assert chain.stored(other).attempts[0].ring == attempt
        chain.cut()
        chain.restart(other)
        view = chain.together(*sorted((other, 3)), primary=True)
        assert view.entries[other].mark == attempt
        chain.end()

    def test_alive_and_then_in_the_next_attempt(self) -> None:
        """Found here: the same, with one crash."""
        chain = Chain(5)
        chain.form(1, 2, 3, 4)
        installed = chain.first_installs(1, 2, 3, 4)
        attempt = chain.view(installed).id
        others = [node for node in (1, 2, 3, 4) if node != installed]
        chain.form(*others)
        chain.until(lambda: len(chain.stored(others[0]).attempts) == 2)
        chain.cut()
        chain.restart(others[0])
        chain.together(others[0], primary=False)
        assert chain.stored(others[0]).attempts[0].ring == attempt
        chain.end()

    def test_void_after_a_crash_if_another_says_so(self) -> None:
        """2 had reached it and crashed; 3 missed it: so nothing is lost."""
        chain = Chain()
        attempt = chain.missed_by_3()
        assert chain.stored(2).attempts[-1].ring == attempt
        chain.restart(2)
        view = chain.together(2, 3, primary=True)
        assert view.entries[2].mark < attempt
        assert chain.stored(2).attempts == ()
        chain.end()

    def test_all_in_their_first_commit(self) -> None:
        """Nobody has installed anything; two of three know that there may have been a view: a majority."""
        chain = Chain(start=False)
        chain.until(lambda: all(chain.reached(node) for node in (1, 2, 3)))
        attempt = chain.engine(1).forming.ring.id
        for node in (1, 2, 3):
            chain.restart(node)
        view = chain.together(1, 2, primary=True)
        assert view.entries[1].mark == view.entries[2].mark == attempt
        chain.end()
        assert len({chain.stored(node).lineage for node in (1, 2, 3)}) == 1

    def test_all_in_their_first_commit_and_one_in_the_second(self) -> None:
        """Found here (seed 3 with 4 nodes): the chain has one name for whoever installs its first view and for who
        only has that on the disk."""
        chain = Chain(start=False)
        chain.until(lambda: all(chain.reached(node) for node in (1, 2, 3)))
        for node in (1, 2, 3):
            chain.restart(node)
        installed, other = chain.last_installs(1, 2)
        chain.restart(other)
        view = chain.together(1, 2, primary=True)
        assert view.entries[installed].lineage == view.entries[other].lineage
        assert not view.entries[installed].says & Says.UNSURE
        assert view.entries[other].says & Says.UNSURE
        chain.end()

    def test_one_in_the_first_commit_and_the_others_begin_without_it(self) -> None:
        """An operator has said that nobody else is alive: what 3 may have seen was nothing, and 3 may come."""
        chain = Chain(start=False)
        chain.until(lambda: all(chain.reached(node) for node in (1, 2, 3)))
        chain.cut()
        chain.cluster.crash(3)
        for node in (1, 2):
            chain.restart(node, wiped=True)
        chain.together(1, 2, primary=False)
        chain.cluster[1].request(1, 0, "node", "bootstrap", {})
        chain.until(lambda: chain.view(1).primary and chain.view(2).primary)
        chain.cluster.restart(3)
        assert chain.together(1, 2, 3, primary=True).entries[3].says & Says.UNSURE
        chain.end()
        assert len({chain.stored(node).lineage for node in (1, 2, 3)}) == 1


class TestC5:
    """A wiped disk must not roll the chain back."""

    def test_one_of_the_last_primary_is_wiped(self) -> None:
        chain = Chain()
        last = chain.together(1, 2, primary=True)
        chain.restart(1, wiped=True)
        view = chain.together(1, 3, primary=False)
        assert view.entries[1].mark.seq == 0
        assert chain.why(3) == "only 1 of 3 votes; node 1 has no vote before being in a primary view"
        assert chain.together(1, 2, 3, primary=True).entries[2].mark == last.id
        chain.end()

    def test_wiped_it_gets_its_vote_back_with_the_next_primary_view(self) -> None:
        chain = Chain()
        chain.restart(1, wiped=True)
        chain.together(1, 2, 3, primary=True)
        chain.together(1, 2, primary=True)
        chain.end()

    def test_a_majority_is_wiped(self) -> None:
        """All must come, and the state that is left is too old to go on."""
        chain = Chain()
        chain.together(1, 2, primary=True)
        for node in (1, 2):
            chain.restart(node, wiped=True)
        chain.together(1, 2, primary=False)
        view = chain.together(1, 2, 3, primary=True)
        assert "what was held is lost" in chain.why(3)
        assert chain.stored(1).lineage == view.entries[3].lineage
        chain.end()

    def test_an_attempt_goes_with_the_disk(self) -> None:
        """A wiped member's silence proves nothing: the other's claim stands."""
        chain = Chain()
        installed, other = chain.last_installs(1, 2)
        attempt = chain.view(installed).id
        chain.restart(installed, wiped=True)
        view = chain.together(1, 2, 3, primary=True)
        assert view.entries[other].mark == attempt
        assert view.entries[installed].mark.seq == 0
        chain.end()


    def test_a_ring_sequence_that_leaves_no_room_is_refused(self) -> None:
        """A disk from nowhere: the others go on, and name it."""
        chain = Chain()
        chain.cluster.crash(3)
        chain.cluster[3].disk.write(replace(chain.stored(3), ring_seq=MAX_RING_SEQ - 1).encode())
        chain.cluster.restart(3)
        chain.cluster.advance(3)
        assert chain.view(1).nodes == (1, 2)
        assert chain.view(1).primary
        whys = [fields["why"] for node, what, fields in chain.notes if node == 1 and what == "bad_frame"]
        assert any("ring sequence" in why and "does not fit 31 bits" in why for why in whys), whys
        chain.cluster.crash(3)
        chain.cluster[3].disk.wipe()
        chain.end()


class TestC6:
    """From a primary view into a primary view is no proof of being current."""

    def test_who_noticed_nothing_is_behind(self) -> None:
        """1 and 2 stand still while 3, 4 and 5 go on; then 3 goes, and the four others are a majority. By their own
        lights 1 and 2 come from the last primary view; the mark of 4 and 5 tells all that there was another.
        """
        chain = Chain(5)
        first = chain.view(1).id
        for node in (1, 2):
            chain.cluster[node].pause()
        last = chain.together(3, 4, 5, primary=True)
        for node in (1, 2):
            chain.cluster[node].resume()
        chain.cluster.crash(3)
        view = chain.together(1, 2, 4, 5, primary=True)
        assert view.entries[1].old_ring == view.entries[2].old_ring == first
        assert {node: entry.mark for node, entry in view.entries.items()} == {
            1: first, 2: first, 4: last.id, 5: last.id,
        }  # fmt: skip
        assert newest_mark(view.entries.values()) == last.id
        chain.end()


class TestC9:
    """There is no time between a view and what it means."""

    def test_all_know_with_the_view(self) -> None:
        """Everybody has everybody's word as soon as it has the view, before any message of it (K1)."""
        chain = Chain(5)
        known: list[tuple[int, RingId, bool, int]] = []

        def note(event: Viewed) -> None:
            view, node = event.view, event.who.node
            if view.nodes == (2, 3, 4) and not view.transitional:
                sent = len(chain.cluster[node].delivered)
                known.append((node, newest_mark(view.entries.values()), view.primary, sent))

        chain.cluster.trace.subscribe(Viewed, note)
        last = chain.view(1).id
        chain.together(2, 3, 4, primary=True)
        assert sorted(known) == [(node, last, True, 0) for node in (2, 3, 4)]
        chain.end()


class TestC7:
    """The disk of another cluster."""

    def test_it_is_refused_by_name_on_both_sides(self) -> None:
        chain = Chain()
        chain.cluster.crash(3)
        own = chain.stored(3)
        foreign = replace(own, lineage=0xBAD, mark=RingId(own.mark.seq + 900, 3))
        chain.cluster[3].disk.write(foreign.encode())
        chain.cluster.restart(3)
        chain.cluster.advance(3)
        assert chain.view(1).nodes == (1, 2)
        assert chain.view(1).primary
        assert chain.view(3).nodes == (3,)
        assert not chain.view(3).primary
        for here, there in ((1, 3), (3, 1)):
            refused = [fields for node, what, fields in chain.notes if node == here and what == "bad_frame"]
            whys = [fields["why"] for fields in refused if fields["node"] == there]
            assert any("comes from another cluster of this name (lineage" in why for why in whys), whys
            refused = chain.cluster[here].core.status()["ring"]["refused"]
            assert [row["why"] for row in refused if row["node"] == there] == whys
        chain.cluster.crash(3)
        chain.cluster[3].disk.wipe()
        chain.end()


    def test_who_only_knows_its_cluster_from_an_attempt_refuses_others_too(self) -> None:
        """Found here (seed 195 with 3 nodes): 3 has an empty disk, commits to a ring of all, and crashes."""
        chain = Chain()
        chain.restart(3, wiped=True)
        chain.until(lambda: chain.reached(3))
        chain.restart(3)
        assert chain.stored(3).lineage == 0
        assert chain.engine(3).hello.lineage == chain.stored(1).lineage > 0
        chain.end()

    def test_who_has_nearly_come_to_a_foreign_disk_is_free_again(self) -> None:
        """Found here: 1 and 2 have been in no cluster yet, and commit to a ring with 3, which breaks. They went on
        refusing all but that cluster until they were restarted.
        """
        chain = Chain(start=False)
        chain.cluster.crash(3)
        mark, everybody = RingId(900, 3), ((1, 1), (2, 1), (3, 1))
        foreign = Record(900, mark=mark, lineage=0xBAD, bases=((mark, everybody),))
        chain.cluster[3].disk.write(foreign.encode())
        chain.cluster.restart(3)
        chain.until(lambda: all(chain.engine(node).hello.lineage == 0xBAD for node in (1, 2)))
        assert not any(chain.reached(node) for node in (1, 2))
        chain.cut()
        assert [chain.engine(node).hello.lineage for node in (1, 2)] == [0, 0]
        chain.restart(3, wiped=True)
        chain.end()
        assert chain.stored(1).lineage not in (0, 0xBAD)


class TestC8:
    """Verdicts whose primaries need not overlap."""

    LMS = QuorumConfig("last_man_standing")

    def test_last_man_standing_down_to_two_and_never_the_other_way(self) -> None:
        chain = Chain(5, quorum=self.LMS)
        chain.together(1, 2, 3, primary=True)
        chain.together(1, 2, primary=True)
        chain.together(3, 4, 5, primary=False)
        assert chain.why(3) == "only 1 of 3 votes"
        (last,) = chain.together(2, 3, 4, 5, primary=False).entries[2].bases
        assert last[1] == ((1, 1), (2, 1))
        chain.end()

    def test_a_tie_needs_the_tie_breaker(self) -> None:
        chain = Chain(4, quorum=QuorumConfig(auto_tie_breaker=True))
        chain.together(3, 4, primary=False)
        chain.together(1, 4, primary=True)
        chain.end()

    def test_last_man_standing_when_the_newest_view_is_in_doubt(self) -> None:
        """Found here: 1, 3 and 4 reach a view of all that 5 missed. Apart from 5 they count by it, 3 of 5; 2 and 5,
        who know better, by the one before, 2 of 3. So those in doubt need both.
        """
        chain = Chain(5, quorum=self.LMS)
        last = chain.together(1, 2, 5, primary=True)
        chain.form(1, 2, 3, 4, 5)
        chain.until(lambda: all(chain.reached(node) for node in (1, 2, 3, 4)) and not chain.reached(5))
        attempt = chain.engine(1).forming.ring.id
        chain.cut()
        chain.cluster.heal()
        chain.cluster.partition({1, 3, 4}, {2, 5})
        chain.until(lambda: chain._in(1, (1, 3, 4)) and chain._in(2, (2, 5)))
        assert attempt in chain.views(1)
        assert not chain.view(1).primary
        assert chain.why(1) == "only 1 of 3 votes"
        assert attempt not in chain.views(2)
        assert chain.view(2).primary
        assert chain.view(2).entries[2].mark == last.id
        chain.end()

    def test_wait_for_all(self) -> None:
        """After a start of all, two of three are not enough until all have been there."""
        chain = Chain(quorum=QuorumConfig(wait_for_all=True))
        chain.together(1, 2, primary=True)
        for node in (1, 2, 3):
            chain.restart(node)
        chain.together(1, 2, primary=False)
        assert chain.why(1).startswith("wait_for_all")
        chain.together(1, 2, 3, primary=True)
        chain.together(1, 2, primary=True)
        chain.restart(1)
        chain.together(1, 2, primary=True)  # 2 has been there
        chain.end()


class TestPolicies:
    """Each policy through the rings, with what it allows and what it refuses."""

    def test_majority_of_unequal_votes(self) -> None:
        """Node 1 has two of four, node 4 only watches: 1 and any other, or all others together with a vote of 1."""
        chain = Chain(4, votes=(2, 1, 1, 0))
        chain.together(2, 3, 4, primary=False)
        assert chain.why(2) == "only 2 of 4 votes"
        chain.together(1, 4, primary=False)
        chain.together(1, 3, primary=True)
        assert chain.why(1) == "3 of 4 votes"
        chain.together(2, 3, 4, primary=False)
        chain.end()

    def test_two_node_goes_on_on_both_sides(self) -> None:
        """What it is for, and why it needs fencing: neither side knows of the other."""
        chain = Chain(2, quorum=QuorumConfig("two_node"))
        assert chain.together(1, primary=True).id != chain.together(2, primary=True).id
        assert chain.why(1) == "1 of 2 votes, policy two_node"
        together = chain.together(1, 2, primary=True)
        assert together.entries[1].mark != together.entries[2].mark

    def test_two_node_begins_only_with_both(self) -> None:
        """And after both have been stopped: else either side could begin alone."""
        chain = Chain(2, start=False, quorum=QuorumConfig("two_node"))
        chain.together(1, primary=False)
        chain.together(1, 2, primary=True)
        for node in (1, 2):
            chain.restart(node)
        chain.together(2, primary=False)
        assert chain.why(2) == "wait_for_all: all nodes must come together once after a start"
        chain.together(1, 2, primary=True)
        chain.restart(1)
        chain.together(1, primary=False)
        chain.together(2, primary=True)  # has been there

    def test_none(self) -> None:
        chain = Chain(3, start=False, quorum=QuorumConfig("none"))
        assert chain.together(3, primary=True).id != chain.together(1, 2, primary=True).id
        chain.together(1, 2, 3, primary=True)


class TestOperator:
    """``vsync bootstrap``."""

    def test_a_new_cluster_begins_with_a_majority(self) -> None:
        chain = Chain(start=False)
        chain.together(1, 2, primary=False)
        assert chain.why(1).endswith("1 more must come, or run vsync bootstrap")
        chain.cluster[1].request(1, 0, "node", "bootstrap", {})
        chain.until(lambda: chain.view(1).primary and chain.view(2).primary)
        ring = str(chain.view(2).id)
        said = [(node, fields) for node, what, fields in chain.notes if what == "bootstrapped"]
        assert said == [(n, {"ring": ring, "said_at": [1], "members": [1, 2], "primary": True}) for n in (1, 2)]
        chain.end()
        assert sum(what == "bootstrapped" for _, what, _ in chain.notes) == 2

    def test_not_with_a_minority(self) -> None:
        chain = Chain(start=False)
        chain.together(1, primary=False)
        before = chain.view(1).id
        chain.cluster[1].request(1, 0, "node", "bootstrap", {})
        chain.cluster.advance(1)
        assert chain.view(1).id == before
        chain.end()

    def test_it_is_about_the_next_view_only(self) -> None:
        """A word that was true must not outlive what it was about."""
        chain = Chain(start=False)
        chain.cluster[1].request(1, 0, "node", "bootstrap", {})
        chain.together(1, primary=False)
        chain.together(1, 2, primary=False)
        chain.end()

    def test_override(self) -> None:
        chain = Chain()
        chain.together(3, primary=False)
        chain.cluster.crash(1)
        chain.cluster.crash(2)
        chain.cluster[3].request(1, 0, "node", "bootstrap", {"override": True})
        chain.until(lambda: chain.view(3).primary)
        assert chain.why(3) == "an operator has overridden the quorum"
        assert [what for node, what, _ in chain.notes if node == 3 and "overrid" in what] == [
            "quorum_override", "quorum_overridden",
        ]  # fmt: skip
        chain.end()
