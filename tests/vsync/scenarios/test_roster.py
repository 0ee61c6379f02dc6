"""The set of nodes changes while the cluster runs: added, removed, replaced, moved; and what breaks just then.

Production cores in the simulator, whose checkers judge every view (QUO-Q1, CHAIN-K8, CHAIN-C8).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from vsync.engine.record import Record
from vsync.nodes import NodesService
from vsync.quorum import REMOVED
from vsync.testing.cluster import SimCluster
from vsync.testing.node import SESSION, SimNode
from vsync.testing.options import LinkOptions, quiet, scaled
from vsync.testing.plugin import Plugin
from vsync.testing.trace import Noted
from vsync.types import Member, Peer, QuorumConfig, View


def peer(node: int, votes: int = 1, port: int = 7000) -> Peer:
    """As ``SimCluster`` makes them."""
    return Peer(node, f"n{node}", (f"127.0.0.1:{port + node}",), votes)


class Answers(Plugin):
    """Keeps every answer, by node and number."""

    def __init__(self) -> None:
        self.got: dict[tuple[int, int], tuple[bool, Any]] = {}

    def reply(self, node: SimNode, session: int, rid: int, ok: bool, data: Any) -> None:
        self.got[node.id, rid] = ok, data


class Cluster:
    """Nodes with short timers, an operator, and a log."""

    def __init__(self, nodes: int = 3, start: bool = True, **options: Any) -> None:
        self.answers = Answers()
        chosen = replace(quiet(1, nodes, scaled(0.2)), links=LinkOptions(cut_in_flight=True), **options)
        self.sim = SimCluster(options=chosen, plugins=(self.answers,))
        self.notes: list[tuple[int, str, dict[str, Any]]] = []
        self.sim.trace.subscribe(Noted, lambda e: self.notes.append((e.who.node, e.name, e.fields)))
        self._rid = 100
        if start:
            for node in self.sim.nodes.values():
                node.start()
            self.sim.settle()

    def core(self, node: int) -> Any:
        return self.sim[node].core

    def view(self, node: int) -> View:
        view = self.sim[node].core.view
        assert view is not None
        return view

    def roster(self, node: int) -> dict[int, int]:
        """Votes by id, as the node counts."""
        votes: dict[int, int] = self.core(node).roster.votes
        return votes

    def why(self, node: int) -> str:
        why: str = self.core(node).status()["quorum"]["why"]
        return why

    def ask(self, at: int, kind: str, node: int | None = None, **what: Any) -> int:
        """An operator's command; returns its number."""
        self._rid += 1
        self.sim.disturbed()
        self.sim[at].request(SESSION, self._rid, "nodes", kind, {"node": node, **what})
        return self._rid

    def add(self, at: int, node: int, **what: Any) -> int:
        new = peer(node)
        return self.ask(at, "add", node, name=new.name, addresses=list(new.addresses), **what)

    def answer(self, at: int, rid: int) -> tuple[bool, Any]:
        self.until(lambda: (at, rid) in self.answers.got)
        return self.answers.got[at, rid]

    def does(self, at: int, kind: str, node: int, **what: Any) -> dict[str, Any]:
        """The command is in force when this returns."""
        good, data = False, {"code": "busy"}
        while not good and data["code"] == "busy":  # the former one is not in force at this node yet
            self.sim.advance(0.001)
            rid = self.add(at, node, **what) if kind == "add" else self.ask(at, kind, node, **what)
            good, data = self.answer(at, rid)
        assert good, data
        listing: dict[str, Any] = data
        return listing

    def refused(self, at: int, kind: str, node: int, **what: Any) -> str:
        good, data = self.answer(at, self.ask(at, kind, node, **what))
        assert not good
        return f"{data['code']}: {data['message']}"

    def host(self, node: int, *known: int, votes: int = 1) -> SimNode:
        """A new host that runs, with a file that lists these and itself."""
        host = self.sim.enlist(peer(node, votes), [peer(other) for other in known])
        host.start()
        return host

    def until(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        end = self.sim.scheduler.now + round(seconds * 1_000_000)
        while not condition():
            assert self.sim.scheduler.step(end), "it does not come to that"

    def together(self, *nodes: int) -> View:
        """These share one view, and it is all of them."""
        self.until(lambda: all(self._in(node, nodes) for node in nodes))
        return self.view(nodes[0])

    def _in(self, node: int, nodes: tuple[int, ...]) -> bool:
        core = self.sim[node].core
        return core.view is not None and core.view.nodes == nodes and self.sim[node].state == "operational"

    def stop(self, node: int) -> None:
        """Dismiss a host; its disk is kept in the object that is returned by ``SimCluster.dismiss``."""
        self.sim[node].crash()

    def noted(self, node: int, name: str) -> list[dict[str, Any]]:
        return [fields for who, what, fields in self.notes if (who, what) == (node, name)]


class TestAdd:
    def test_three_become_four(self) -> None:
        c = Cluster()
        c.host(4, 1, 2, 3)
        listing = c.does(2, "add", 4)
        assert [(row["id"], row["votes"], row["since"]) for row in listing["nodes"]][-1] == (4, 1, 2)
        assert c.together(1, 2, 3, 4).primary
        assert c.why(4).startswith("3 of 4 votes")  # it has none before it has been in a primary view
        c.sim.settle()
        assert {node: c.roster(node) for node in (1, 4)} == {n: {1: 1, 2: 1, 3: 1, 4: 1} for n in (1, 4)}
        c.sim.partition({1, 2}, {3, 4})
        c.sim.advance(2)
        assert c.why(1) == c.why(3) == "only 2 of 4 votes"
        c.sim.partition({1}, {2, 3, 4})
        assert c.together(2, 3, 4).primary

    def test_before_it_is_added_it_is_refused_and_told(self) -> None:
        c = Cluster()
        c.host(4, 1, 2, 3)
        c.until(lambda: c.core(4).view is not None and c.core(4).outcast)
        assert c.core(4).nodes.status()["remedy"].startswith("the cluster's nodes do not include this one: run")
        assert any("node 4 at 127.0.0.1:7004 is not in" in f["why"] and "run vsync nodes add" in f["why"]
                   for f in c.noted(1, "bad_frame"))  # fmt: skip
        c.does(1, "add", 4)
        assert c.together(1, 2, 3, 4).primary
        assert not c.core(4).outcast

    def test_its_file_need_not_list_all(self) -> None:
        c = Cluster()
        c.host(4, 1)
        c.does(1, "add", 4)
        assert c.together(1, 2, 3, 4).primary
        assert c.core(4).nodes.status()["differs"] == ["lacks node 2 (n2)", "lacks node 3 (n3)"]

    def test_the_next_id(self) -> None:
        c = Cluster()
        good, listing = c.answer(1, c.ask(1, "add", None, name="new", addresses=["127.0.0.1:9"]))
        assert good
        assert [row["id"] for row in listing["nodes"]] == [1, 2, 3, 4]

    def test_grows_one_by_one(self) -> None:
        """The second cannot have a vote at once: it has none before it has joined, and one of two is too few."""
        c = Cluster(1)
        c.host(2, 1)
        assert "add it with --votes 0" in c.refused(1, "add", 2, name="n2", addresses=["127.0.0.1:7002"])
        c.does(1, "add", 2, votes=0)
        c.together(1, 2)
        c.does(2, "set", 2, votes=1)
        for node in range(3, 6):
            c.host(node, 1)
            c.does(1, "add", node)
            assert c.together(*range(1, node + 1)).primary
        assert c.core(1).roster.version == 6
        c.sim.settle()
        assert c.why(1).startswith("4 of 5 votes")

    def test_not_if_those_present_would_be_too_few(self) -> None:
        c = Cluster(4)
        c.stop(4)
        c.together(1, 2, 3)
        assert c.refused(1, "add", 5, name="x", addresses=["127.0.0.1:9"], votes=3).startswith(
            "invalid: a new node has no vote before it has joined, and those that are present would have too few"
        )
        assert c.view(1).primary


class TestRemove:
    def test_a_member_is_told_and_never_alone_primary(self) -> None:
        c = Cluster(2, votes=(2, 1))
        c.does(1, "remove", 2)
        c.until(lambda: c.view(2).nodes == (2,))
        assert c.view(1).nodes == (1,)
        assert c.view(1).primary
        assert c.why(2) == REMOVED.format(node=2)
        assert c.noted(2, "removed") == [{"remedy": REMOVED.format(node=2)}]
        c.sim[2].request(SESSION, 7, "node", "bootstrap", {"override": True})
        c.sim.advance(2)
        assert not c.view(2).primary
        c.sim[2].crash()
        c.sim[2].start()
        c.until(lambda: c.core(2).view is not None)
        assert c.why(2) == REMOVED.format(node=2)

    def test_who_was_off_is_refused_and_told(self) -> None:
        c = Cluster()
        c.stop(3)
        c.together(1, 2)
        c.does(2, "remove", 3)
        c.sim[3].start()
        c.until(lambda: c.core(3).outcast)
        assert c.core(3).nodes.status()["remedy"] == REMOVED.format(node=3)
        assert any("was removed from the cluster" in fields["why"] for fields in c.noted(1, "bad_frame"))
        c.sim.advance(2)
        assert not c.view(3).primary
        said: list[int] = []
        c.sim.network.drop = lambda src, dst, frame: bool(src == 3 and said.append(dst))
        c.sim.advance(2)
        assert not said, "it goes on talking to who does not want to hear it"

    def test_back_again_with_its_old_disk(self) -> None:
        """It belongs to the cluster again, but what it had stored before does not vote."""
        c = Cluster()
        c.stop(3)
        c.together(1, 2)
        c.does(1, "remove", 3)
        assert c.roster(1) == {1: 1, 2: 1}
        c.does(1, "add", 3)
        assert c.core(1).roster.birth(3) == 3
        c.sim.partition({1}, {2, 3})
        c.sim[3].start()
        c.together(2, 3)
        assert not c.view(2).primary
        assert c.why(2).startswith("only 1 of 3 votes")
        c.sim.heal()
        assert c.together(1, 2, 3).primary
        c.sim.partition({1}, {2, 3})
        assert c.together(2, 3).primary

    def test_down_to_one(self) -> None:
        c = Cluster()
        c.stop(3)
        c.together(1, 2)
        c.does(1, "remove", 3)
        c.does(1, "remove", 2)  # it runs: one of two nodes alone could not do it
        assert c.roster(1) == {1: 1}
        assert c.together(1).primary
        assert c.refused(1, "remove", 1).startswith("invalid: a node cannot see the end of its own removal")

    def test_who_was_primary_goes_on_as_such(self) -> None:
        """Members of the view keep their lives: only the set has changed."""
        c = Cluster()
        before = c.view(1)
        c.does(1, "remove", 3)
        assert c.view(1).joined == ()
        assert c.view(1).left == tuple(m for m in before.members if m.node == 3)


class TestReplace:
    def test_a_wiped_machine(self) -> None:
        c = Cluster()
        c.stop(3)
        c.together(1, 2)
        c.sim[3].disk.wipe()
        listing = c.does(1, "replace", 3)
        assert [(row["id"], row["since"]) for row in listing["nodes"]] == [(1, 0), (2, 0), (3, 2)]
        c.sim[3].start()
        assert c.together(1, 2, 3).primary
        c.sim.partition({1}, {2, 3})
        assert c.together(2, 3).primary

    def test_the_former_disk_does_not_vote(self) -> None:
        """Else {1, the new 3} and {2, the former 3} could both be primary."""
        c = Cluster()
        c.stop(3)
        c.together(1, 2)
        c.does(1, "replace", 3)
        c.sim.partition({1}, {2, 3})
        c.sim[3].start()  # its disk has not been wiped
        c.together(2, 3)
        assert not c.view(2).primary
        assert c.why(2).startswith("only 1 of 3 votes")

    def test_not_while_it_runs(self) -> None:
        c = Cluster()
        assert c.refused(1, "replace", 3).startswith("invalid: node 3 is a member of the view: stop its vsyncd")

    def test_at_another_address(self) -> None:
        c = Cluster()
        c.stop(3)
        c.together(1, 2)
        c.does(1, "replace", 3, addresses=["127.0.0.1:8003"], name="three")
        host = c.sim[3]
        host.disk.wipe()
        moved = replace(peer(3, port=8000), name="three")
        c.sim.enlist(moved, [peer(1), peer(2)], host)
        host.start()
        assert c.together(1, 2, 3).primary
        assert c.core(1).config.name(3) == "three"


class TestSet:
    def test_votes_count_from_the_next_view_on(self) -> None:
        c = Cluster()
        c.does(1, "set", 1, votes=2)
        c.until(lambda: c.why(3) == "4 of 4 votes")
        c.sim.partition({1}, {2, 3})
        c.sim.advance(2)
        assert c.why(1) == c.why(2) == "only 2 of 4 votes"
        c.sim.partition({1, 2}, {3})
        assert c.together(1, 2).primary
        assert c.why(1) == "3 of 4 votes"

    def test_one_by_one(self) -> None:
        """{1} would be enough after it, and {2, 3} before."""
        c = Cluster()
        assert "could have no node in common" in c.refused(1, "set", 1, votes=3)
        c.does(2, "set", 1, votes=2)
        c.does(3, "set", 1, votes=3)
        c.until(lambda: c.why(1) == "5 of 5 votes")

    def test_who_was_off_finds_those_who_have_moved(self) -> None:
        """All that 3 knows is outdated; the others know where it is."""
        c = Cluster(5)
        assert "would be looked for where it is not" in c.refused(1, "set", 2, addresses=["127.0.0.1:1"])
        c.stop(3)
        rest = (1, 2, 4, 5)
        c.together(*rest)
        for node in rest:
            c.stop(node)
            others = tuple(n for n in rest if n != node)
            c.together(*others)
            c.does(others[0], "set", node, addresses=[f"127.0.0.1:{8000 + node}"])
            c.sim.enlist(peer(node, port=8000), [peer(others[0])], c.sim[node]).start()
            assert c.together(*rest).primary
        c.sim[3].start()
        assert c.together(1, 2, 3, 4, 5).primary
        assert c.core(3).config.peer(1).addresses == ("127.0.0.1:8001",)

    def test_tie_breakers(self) -> None:
        """With auto_tie_breaker {1} is enough of {1, 2}; {2} must not become so in one step."""
        c = Cluster(2, quorum=QuorumConfig(auto_tie_breaker=True))
        assert "could have no node in common" in c.refused(1, "set", 1, votes=0)

    def test_last_man_standing(self) -> None:
        c = Cluster(4, quorum=QuorumConfig("last_man_standing"))
        c.stop(4)
        c.together(1, 2, 3)
        c.stop(3)
        assert c.together(1, 2).primary
        c.does(1, "remove", 4)
        c.does(2, "set", 2, votes=2)
        assert c.view(1).primary
        c.sim.partition({1}, {2})
        c.sim.advance(2)
        assert (c.view(1).primary, c.view(2).primary) == (False, True)
        assert c.why(2) == "2 of 3 votes"


class TestOneAtATime:
    def test_of_two_commands_one_is_done(self) -> None:
        c = Cluster()
        asked = {at: c.ask(at, "set", at, votes=2) for at in (1, 2)}
        answers = [c.answer(at, rid) for at, rid in asked.items()]
        assert sorted(good for good, _ in answers) == [False, True]
        code = next(data["code"] for good, data in answers if not good)
        assert code in ("overtaken", "lost", "invalid")
        assert sum(c.roster(3).values()) == 4
        assert c.core(3).roster.version == 2

    def test_only_in_a_primary_view(self) -> None:
        c = Cluster()
        c.sim.partition({1}, {2}, {3})
        c.until(lambda: c.view(1).nodes == (1,))
        assert c.refused(1, "remove", 2).startswith("no_quorum: the view is not primary")

    def test_only_for_administrators(self) -> None:
        from vsync.service import Credentials

        c = Cluster(1)
        c.core(1).open_session(7, Credentials(4711, 1000, 1000, "somebody"), c.sim[1].clock())
        c.sim[1].request(7, 5, "nodes", "add", {"name": "x", "addresses": ["127.0.0.1:9"]})
        good, data = c.answers.got[1, 5]
        assert (good, data["code"]) == (False, "denied")
        c.sim[1].request(7, 6, "nodes", "ls", {})
        assert c.answers.got[1, 6][0]

    @pytest.mark.parametrize(
        ("kind", "what", "text"),
        [
            ("paint", {}, "unknown_verb: nodes know ls, add, remove, replace, set"),
            ("remove", {"node": "nobody"}, "invalid: there is no node 'nobody'"),
            ("set", {"node": 1, "votes": "two"}, "invalid: node and votes are numbers"),
            ("add", {"node": 9}, "invalid: node 9 needs an id"),
            ("remove", {"node": [1]}, "invalid: there is no node [1]"),
        ],
    )
    def test_nonsense(self, kind: str, what: dict[str, Any], text: str) -> None:
        c = Cluster(1)
        c.sim[1].request(SESSION, 50, "nodes", kind, what)
        good, data = c.answers.got[1, 50]
        assert not good
        assert f"{data['code']}: {data['message']}".startswith(text)

    def test_nonsense_in_the_order(self) -> None:
        """Whatever a member sends: all skip it alike."""
        c = Cluster()
        for payload in (b"\x03", b"\x03\xc1", b"\x03\x90", b"\x03\x96\x01\x02\x03\x04\x05\x06"):
            c.core(1).submit(payload)
        c.sim.advance(1)
        assert len(c.noted(2, "nodes.garbage")) == 4
        assert c.core(2).roster.version == 1


class TestBroken:
    """The ring breaks between the change and the view that is counted by it."""

    def changed_at(self, c: Cluster, kind: str, node: int, **what: Any) -> tuple[int, int]:
        """Somebody has delivered it, and is cut off before another one could hear of that. (who, number)"""
        rid = c.add(1, node, **what) if kind == "add" else c.ask(1, kind, node, **what)
        nodes = list(c.sim.nodes)
        c.until(lambda: any(c.core(n).roster.version == 2 for n in nodes if c.sim[n].up))
        who = next(n for n in nodes if c.sim[n].up and c.core(n).roster.version == 2)
        c.sim.partition({who}, set(nodes) - {who})
        return who, rid

    def test_a_change_that_one_knows_is_lost_with_it(self) -> None:
        """The others go on without it; when they come back to each other, it has never been."""
        c = Cluster()
        who, rid = self.changed_at(c, "set", 1, votes=2)
        others = [n for n in (1, 2, 3) if n != who]
        assert c.together(*others).primary
        assert c.roster(others[0]) == {1: 1, 2: 1, 3: 1}
        c.until(lambda: c.view(who).nodes == (who,))
        assert c.why(who) == f"only {2 if who == 1 else 1} of 4 votes"
        c.sim.heal()
        assert c.together(1, 2, 3).primary
        assert c.roster(who) == {1: 1, 2: 1, 3: 1}
        good, data = c.answer(1, rid)
        assert (good, data["code"]) == (False, "lost")
        c.does(1, "set", 1, votes=2)

    def test_a_removal_that_only_who_is_removed_knows_of(self) -> None:
        """Found here (seed 48): the other one still counts its vote, so it must learn from it that it need not."""
        c = Cluster(2)
        rid = c.ask(1, "remove", 2)
        c.until(lambda: c.core(2).roster.version == 2)
        assert c.core(1).roster.version == 1
        c.sim.partition({1}, {2})
        c.until(lambda: c.view(1).nodes == (1,) and c.view(2).nodes == (2,))
        c.sim.advance(2)
        assert c.why(1) == "only 1 of 2 votes"
        c.sim.heal()
        c.until(lambda: c.view(1).primary and c.view(1).nodes == (1,))
        assert c.answer(1, rid)[0]
        c.until(lambda: c.why(2) == REMOVED.format(node=2))

    def test_it_is_not_lost_if_who_knows_it_comes_along(self) -> None:
        c = Cluster()
        who, rid = self.changed_at(c, "set", 1, votes=2)
        other = 1 if who != 1 else 2
        third = ({1, 2, 3} - {who, other}).pop()
        c.sim.partition({who, other}, {third})
        view = c.together(*sorted((who, other)))
        assert c.roster(other) == {1: 2, 2: 1, 3: 1}
        assert view.primary == (1 in (who, other))
        c.sim.heal()
        assert c.together(1, 2, 3).primary
        assert c.roster(third) == {1: 2, 2: 1, 3: 1}
        assert c.answer(1, rid)[0]

    def test_a_crash_does_not_forget_it(self) -> None:
        """It is on disk before anybody is told; that the others go on without it is another matter."""
        c = Cluster()
        who, _ = self.changed_at(c, "set", 1, votes=2)
        c.sim[who].crash()
        stored = c.sim[who].disk.record
        assert stored is not None
        roster = Record.decode(stored).roster
        assert roster is not None
        assert roster.version == 2
        c.sim.heal()
        c.sim[who].start()
        assert c.together(1, 2, 3).primary
        assert len({tuple(c.roster(n).items()) for n in (1, 2, 3)}) == 1

    def test_another_change_instead_of_it(self) -> None:
        """Two different versions 2: that of the newer view counts."""
        c = Cluster()
        who, _ = self.changed_at(c, "set", 1, votes=2)
        others = [n for n in (1, 2, 3) if n != who]
        c.together(*others)
        c.does(others[0], "set", others[1], votes=2)
        c.sim.heal()
        assert c.together(1, 2, 3).primary
        assert c.roster(who) == {who: 1, others[0]: 1, others[1]: 2}

    def test_a_new_node_cannot_help_who_was_cut_off(self) -> None:
        """1 knows that 4 belongs to the cluster; 4 has no vote yet, and {2, 3} go on."""
        c = Cluster()
        c.host(4, 1, 2, 3)
        c.sim.partition({1, 2, 3}, {4})
        c.together(1, 2, 3)
        who, _ = self.changed_at(c, "add", 4)
        c.sim.partition({who, 4}, {1, 2, 3} - {who})
        others = [n for n in (1, 2, 3) if n != who]
        assert c.together(*others).primary
        c.together(*sorted((who, 4)))
        assert c.why(who).startswith("only 1 of 4 votes")
        c.sim.heal()
        assert c.together(1, 2, 3).primary
        assert c.core(4).outcast or not c.view(4).primary


class TestFiles:
    def test_they_must_be_alike_at_the_beginning(self) -> None:
        c = Cluster(start=False)
        c.sim.enlist(peer(2), [peer(1), peer(3, 2)], c.sim[2])
        for node in (1, 2, 3):
            c.sim[node].start()
        c.together(1, 2, 3)
        why = "the [[nodes]] of these nodes' files differ from node 1's: that of node 2: node 3 has votes 2, not 1:"
        assert c.why(3).startswith(why)
        assert all(f["why"].startswith(why) for f in c.noted(1, "view_installed") if len(f["members"]) == 3)
        c.sim[2].crash()
        c.sim.enlist(peer(2), [peer(1), peer(3)], c.sim[2]).start()
        assert c.together(1, 2, 3).primary

    def test_later_the_stored_roster_goes_first(self) -> None:
        c = Cluster()
        c.stop(2)
        c.sim.enlist(peer(2), [peer(1, 9), peer(3), peer(8)], c.sim[2])
        c.sim[2].start()
        assert c.together(1, 2, 3).primary
        assert c.roster(2) == {1: 1, 2: 1, 3: 1}
        (said,) = c.noted(2, "nodes_differ")
        assert said["what"] == ["node 1 has votes 9, not 1", "has node 8 (n8)"]
        assert "vsync nodes export" in said["remedy"]
        assert c.core(2).nodes.status()["differs"] == said["what"]
        assert 8 not in [p.node for p in c.core(2).config.peers]

    def test_after_a_change_the_next_start_says_so(self) -> None:
        c = Cluster()
        c.does(1, "set", 3, votes=0)
        c.stop(1)
        c.sim[1].start()
        c.together(1, 2, 3)
        assert c.noted(1, "nodes_differ")[0]["what"] == ["node 3 has votes 1, not 0"]
        assert c.why(1) == "2 of 2 votes"

    def test_a_wiped_node_with_a_former_file_learns_what_counts(self) -> None:
        c = Cluster()
        c.host(4, 1, 2, 3)
        c.does(1, "add", 4)
        c.together(1, 2, 3, 4)
        c.stop(2)
        c.sim[2].disk.wipe()
        c.sim[2].start()  # its file lists three
        assert c.together(1, 2, 3, 4).primary
        assert c.roster(2) == {1: 1, 2: 1, 3: 1, 4: 1}

    def test_a_file_with_another_address_for_itself(self) -> None:
        """Where a node is it knows best; but the others believe the roster, and say so."""
        c = Cluster()
        c.stop(3)
        c.together(1, 2)
        c.sim.enlist(peer(3, port=8000), [peer(1), peer(2)], c.sim[3]).start()
        c.sim.advance(2)
        assert c.view(1).nodes == (1, 2)
        assert any("127.0.0.1:8003 claims it" in fields["why"] for fields in c.noted(1, "bad_frame"))
        c.does(1, "set", 3, addresses=["127.0.0.1:8003"])
        assert c.together(1, 2, 3).primary


class TestOverride:
    def test_it_goes_on_through_the_changes_that_make_it_superfluous(self) -> None:
        """1 and 2 are gone for good: the operator says so once, and takes them out."""
        c = Cluster()
        c.sim.partition({1}, {2}, {3})
        c.until(lambda: c.view(3).nodes == (3,))
        c.stop(1)
        c.stop(2)
        c.sim[3].request(SESSION, 9, "node", "bootstrap", {"override": True})
        c.until(lambda: c.view(3).primary)
        c.does(3, "remove", 1)
        assert c.why(3) == "an operator has overridden the quorum"
        c.does(3, "remove", 2)
        assert c.roster(3) == {3: 1}
        c.stop(3)
        c.sim[3].start()
        c.until(lambda: c.core(3).view is not None and c.view(3).primary)
        assert c.why(3) == "1 of 1 votes"


def test_a_change_that_comes_while_a_view_is_installed_is_told_by_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others may not deliver it at all before that view (pitfalls C8, K3)."""
    c = Cluster()
    service: NodesService = c.core(2).nodes
    deliver, seen = service.deliver, []

    def installing(origin: Member, position: int, payload: bytes, _: bool, now: int) -> None:
        before = c.core(2).roster
        deliver(origin, position, payload, True, now)
        seen.append(c.core(2).roster == before)

    monkeypatch.setattr(service, "deliver", installing)
    c.does(1, "add", 4)
    c.until(lambda: 4 in c.roster(2))
    assert seen == [True]
