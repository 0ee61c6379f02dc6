"""Rosters: the table of what may be changed, majorities that must meet, and by which roster a view is counted."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import chain, combinations
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsync.counting import counted, roster_of
from vsync.engine.record import Attempt, Record
from vsync.quorum import REMOVED, Says, judge
from vsync.roster import RULES, Change, Refused, Roster, Situation, changed, differences, overlap
from vsync.types import NO_RING, Entry, Member, Peer, RingId


def peer(node: int, votes: int = 1, *addresses: str) -> Peer:
    return Peer(node, f"n{node}", addresses or (f"10.0.0.{node}:7410",), votes)


def roster(*votes: int, version: int = 3) -> Roster:
    """Nodes 1, 2, … with these votes."""
    peers = tuple(peer(node, vote) for node, vote in enumerate(votes, 1))
    return Roster(version, peers, (1,) * len(peers))


def change(kind: str, node: int, **what: Any) -> Change:
    return Change(kind, node, **what)


def add(node: int, **what: Any) -> Change:
    return Change("add", node, **{"name": f"n{node}", "addresses": (f"10.0.0.{node}:7410",), **what})


LINKS = Roster(1, tuple(peer(n, 1, f"a{n}:1", f"b{n}:1") for n in (1, 2)), (0, 0))
LARGE = Roster(1, tuple(peer(n) for n in range(1, 200)), (0,) * 199)
REFUSED = [
    (roster(1, 1, 1), add(2), Situation(), "node 2 belongs to the cluster already"),
    (roster(1, 1, 1), change("remove", 4), Situation(), "there is no node 4"),
    (roster(1, 1, 1), change("replace", 4), Situation(), "there is no node 4"),
    (roster(1, 1, 1), change("set", 4, votes=1), Situation(), "there is no node 4"),
    (roster(1, 1, 1), add(4, name=""), Situation(), "needs an id up to 4294967295 and a name"),
    (roster(1, 1, 1), add(4, name="a b"), Situation(), "needs an id"),
    (roster(1, 1, 1), add(1 << 32), Situation(), "needs an id"),
    (roster(1, 1, 1), add(0), Situation(), "needs an id"),
    (roster(1, 1, 1), add(4, name="n1"), Situation(), "the name n1 is another node's"),
    (roster(1, 1, 1), add(4, addresses=("10.0.0.1:7410",)), Situation(), "10.0.0.1:7410 is n1's"),
    (roster(1, 1, 1), add(4, addresses=("10.0.0.4",)), Situation(), "an address is host:port"),
    (roster(1, 1, 1), add(4, addresses=("10.0.0.4:99999",)), Situation(), "an address is host:port"),
    (roster(1, 1, 1), add(4, addresses=()), Situation(), "the same number of addresses"),
    (roster(1, 1), add(4, addresses=("a:1", "b:1")), Situation(), r"here 1 \(n1\), 1 \(n2\), 2 \(n4\)"),
    (roster(1, 1, 1), add(4, votes=1001), Situation(), "votes are 0 to 1000"),
    (roster(1, 1, 1), add(4, votes=-1), Situation(), "votes are 0 to 1000"),
    (roster(1, 1, 1), change("set", 1, votes=1), Situation(), "node 1 is so already"),
    (roster(1, 1, 1), change("set", 1, name="n2"), Situation(), "the name n2 is another node's"),
    (roster(1, 1, 1), change("replace", 1), Situation(present=(1, 2)), "node 1 is a member of the view"),
    (roster(1, 1, 1), change("set", 1, votes=3), Situation(), "could have no node in common"),
    (roster(1, 1, 1), change("remove", 1), Situation(stays=lambda after: False), "would have too few votes"),
    (roster(1), add(2), Situation(stays=lambda after: False), "add it with --votes 0, and when it is a"),
    (roster(1, 1), change("set", 1, addresses=("a:1",)), Situation(present=(1,)), "looked for where it is not"),
    (roster(1, 0), change("remove", 1), Situation(), "no node would have a vote"),
    (roster(1, 0), change("set", 1, votes=0), Situation(), "no node would have a vote"),
    (roster(1), change("remove", 1), Situation(), "node 1 is the only one"),
    (LINKS, add(3, addresses=("c:1", "c:1")), Situation(), "an address is given twice"),
    (LARGE, add(999, name="x" * 63, addresses=("y" * 6000 + ":1",)), Situation(), "there is no room"),
]


class TestChanges:
    def test_add(self) -> None:
        after = changed(roster(1, 1), add(5, votes=2), Situation())
        assert after == Roster(4, (peer(1), peer(2), peer(5, 2)), (1, 1, 4))

    def test_a_new_node_has_a_vote(self) -> None:
        assert changed(roster(1, 1), add(3), Situation()).votes == {1: 1, 2: 1, 3: 1}

    def test_remove(self) -> None:
        after = changed(roster(1, 1, 1), change("remove", 2), Situation())
        assert after == Roster(4, (peer(1), peer(3)), (1, 1), (2,))

    def test_who_comes_back_is_born_again(self) -> None:
        away = changed(roster(1, 1, 1), change("remove", 2), Situation())
        back = changed(away, add(2), Situation())
        assert (back.birth(2), back.birth(1), back.gone) == (5, 1, ())

    def test_replace(self) -> None:
        after = changed(roster(1, 3), change("replace", 1, addresses=("10.0.0.9:7410",)), Situation())
        assert after == Roster(4, (peer(1, 1, "10.0.0.9:7410"), peer(2, 3)), (4, 1))

    def test_set_keeps_the_disk(self) -> None:
        after = changed(roster(1, 1, 1), change("set", 1, votes=2, name="alpha"), Situation())
        assert after.peers[0] == Peer(1, "alpha", ("10.0.0.1:7410",), 2)
        assert after.born == (1, 1, 1)

    def test_the_first_change_makes_version_2(self) -> None:
        """Version 1 is what the files said."""
        files = Roster.of_file((peer(2), peer(1)))
        assert (files.version, files.nodes, files.agreed().version) == (0, (1, 2), 1)
        assert changed(files, add(3), Situation()).version == 2

    @pytest.mark.parametrize(("before", "wanted", "situation", "why"), REFUSED)
    def test_refused(self, before: Roster, wanted: Change, situation: Situation, why: str) -> None:
        with pytest.raises(Refused, match=why):
            changed(before, wanted, situation)

    def test_every_rule_is_met(self) -> None:
        """By one of the cases above."""
        said = []
        for before, wanted, situation, _ in REFUSED:
            with pytest.raises(Refused) as refused:
                changed(before, wanted, situation)
            said.append(str(refused.value))
        for _, _, text in RULES:
            part = max(re.split(r"{\w+}", text), key=len)
            assert any(part in each for each in said), text

    def test_without_exclusion_no_majorities_need_to_meet(self) -> None:
        """Policies two_node and none promise nothing."""
        assert changed(roster(1, 1, 1), change("set", 1, votes=9), Situation(excludes=False)).votes[1] == 9


def enough(votes: dict[int, int], nodes: set[int], lone: bool) -> bool:
    have, of = sum(votes.get(node, 0) for node in nodes), sum(votes.values())
    breaker = min((node for node, vote in votes.items() if vote), default=0)
    return 2 * have > of or (lone and 2 * have == of and breaker in nodes)


def meet(before: Roster, after: Roster, lone: bool) -> bool:
    """By trying every set of nodes."""
    nodes = sorted({*before.nodes, *after.nodes})
    voting = {node for node in after.nodes if before.birth(node) == after.birth(node)}
    subsets = chain.from_iterable(combinations(nodes, size) for size in range(len(nodes) + 1))
    return not any(
        enough(before.votes, set(some), lone) and enough(after.votes, voting - set(some), lone) for some in subsets
    )


class TestOverlap:
    @pytest.mark.parametrize(
        ("before", "wanted", "lone", "safe"),
        [
            ((1, 1, 1), add(4), False, True),
            ((1,), add(2), False, True),
            ((1, 1), add(3, votes=7), False, True),  # it has no vote in the first view (K8)
            ((1, 1, 1), change("remove", 1), False, True),
            ((3, 1, 1), change("remove", 1), False, False),  # {1} before, {2, 3} after
            ((2, 1, 1), change("remove", 1), False, False),  # {1, 2} before, .. no: {1, 3} and {2}? see brute force
            ((1, 1, 1), change("set", 1, votes=2), False, True),
            ((1, 1, 1), change("set", 1, votes=3), False, False),
            ((1, 1), add(3), True, True),
            ((1, 1), change("set", 1, votes=0), True, False),  # {1} breaks the tie before, {2} has all after
            ((1, 1, 1), change("replace", 1), False, True),
            ((1, 1), change("replace", 1), True, True),
        ],
    )  # fmt: skip
    def test_known_cases(self, before: tuple[int, ...], wanted: Change, lone: bool, safe: bool) -> None:
        old = roster(*before)
        after = changed(old, wanted, Situation(excludes=False))
        assert meet(old, after, lone) == overlap(old, after, lone)
        if before != (2, 1, 1):
            assert overlap(old, after, lone) == safe

    @settings(max_examples=300, deadline=None)
    @given(
        votes=st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(any),
        kind=st.sampled_from(["add", "remove", "replace", "set"]),
        node=st.integers(1, 6),
        given=st.integers(0, 5),
        lone=st.booleans(),
        low=st.booleans(),
    )
    def test_as_by_trying_all_sets(
        self, votes: list[int], kind: str, node: int, given: int, lone: bool, low: bool
    ) -> None:
        """Exact in both directions: nothing unsafe is let through, nothing safe is refused."""
        before = roster(*votes)
        if low:  # a new node may have a lower id than all others
            before = replace(before, peers=tuple(replace(p, node=p.node + 10) for p in before.peers))
        wanted = add(9 if not low else 1, votes=given) if kind == "add" else change(kind, before.nodes[0])
        if kind != "add":
            place = before.nodes[(node - 1) % len(before.nodes)]
            wanted = change(kind, place, votes=None if kind == "remove" else given)
        try:
            after = changed(before, wanted, Situation(excludes=False))
        except Refused:
            return
        assert overlap(before, after, lone) == meet(before, after, lone)


class TestForm:
    def test_packed(self) -> None:
        full = Roster(7, (peer(1, 0, "a:1", "b:1"), peer(9, 1000, "[::1]:2", "c:2")), (0, 7), (4, 2))
        assert Roster.unpack(full.packed) == full
        assert len(full.digest) == 8
        assert full.digest != replace(full, version=8).digest

    @pytest.mark.parametrize(
        "row",
        ["x", (1, [], []), (1, [(1, "a", ["b:1"], 1, -1)], []), (1, [(1, "a", ["b:1"], 1)], []),
         (1, [(2, "a", ["b:1"], 1, 0), (1, "c", ["d:1"], 1, 0)], []), (True, [(1, "a", ["b:1"], 1, 0)], []),
         (1, [(1, 5, ["b:1"], 1, 0)], []), (1, [(1, "a" * 9000, ["b:1"], 1, 0)], [])],
    )  # fmt: skip
    def test_anything_else_is_refused(self, row: Any) -> None:
        with pytest.raises(ValueError, match="a roster"):
            Roster.unpack(msgpack.packb(row))

    @pytest.mark.parametrize("row", [None, ("add",), ("paint", 1, "", [], None), ("add", 1, "", [1], None),
                                     ("add", 1, "", [], True), ("add", "1", "", [], None)])  # fmt: skip
    def test_no_change(self, row: Any) -> None:
        assert Change.of(row and list(row)) is None

    def test_a_change_travels(self) -> None:
        wanted = add(4, votes=0)
        assert Change.of(msgpack.unpackb(msgpack.packb(wanted.row))) == wanted
        assert wanted.text() == "add node 4 (n4) at 10.0.0.4:7410 with 0 votes"

    def test_differences(self) -> None:
        mine = Roster.of_file((peer(1), peer(2, 2), peer(4)))
        other = Roster.of_file((peer(1, 1, "z:1"), Peer(2, "two", peer(2).addresses, 1), peer(3)))
        assert differences(mine, other) == [
            "node 1 is at 10.0.0.1:7410, not z:1", "node 2 is named n2, not two", "node 2 has votes 2, not 1",
            "lacks node 3 (n3)", "has node 4 (n4)",
        ]  # fmt: skip


class TestRecord:
    def test_rosters_are_stored_once(self) -> None:
        one, two = roster(1, 1, 1, version=1), roster(1, 1, version=2)
        attempts = (
            Attempt(RingId(9, 1), 7, ((1, 1),), roster=one), Attempt(RingId(10, 1), 7, ((1, 1),), True, two),
            Attempt(RingId(11, 1), 7, ((1, 1),), roster=one), Attempt(RingId(12, 1), 7, ((1, 1),)),
        )  # fmt: skip
        record = Record(13, attempts, RingId(8, 1), 7, ((RingId(8, 1), ((1, 1),)),), one)
        assert Record.decode(record.encode()) == record
        assert record.encode().count(one.packed) == record.encode().count(two.packed) == 1

    def test_a_record_of_an_earlier_release(self) -> None:
        """It does not say which views its bases are of: refused, as every state directory of an earlier one."""
        row = (4, 9, [], (7, 2), 7, [[(1, 1), (2, 1)]], None, [], False)
        with pytest.raises(ValueError, match="unreadable"):
            Record.decode(msgpack.packb(row))

    def test_sixteen_of_the_largest_do_not_happen_a_few_do_fit(self) -> None:
        from vsync.slots import SLOT

        many = [Roster(v, tuple(peer(n) for n in range(1, 200)), (0,) * 199) for v in range(1, 6)]
        attempts = tuple(Attempt(RingId(9, 1), 7, tuple(many[0].votes.items()), roster=each) for each in many)
        assert len(Record(9, attempts, RingId(7, 1), 7, (), many[0]).encode()) < SLOT - 1024


def entry(node: int, by: Roster, mark: int = 5, **more: Any) -> Entry:
    ring = RingId(mark, 1) if mark else NO_RING
    named = {"names": ((ring, by.digest),), **more}
    return Entry(Member(node, 1), NO_RING, 1, {}, mark=ring, lineage=7 if mark else 0, **named)


def view(*pairs: tuple[int, Roster] | tuple[int, Roster, int]) -> dict[int, Entry]:
    rosters = {each[1].digest: each[1] for each in pairs}
    return counted({each[0]: entry(*each) for each in pairs}, rosters)


THREE, FOUR = roster(1, 1, 1, version=1), roster(1, 1, 1, 1, version=2)
FOUR = replace(FOUR, born=(1, 1, 1, 2))
KNOWN = {THREE.digest: THREE, FOUR.digest: FOUR}


class TestCounting:
    def test_the_newest_that_somebody_present_knows(self) -> None:
        entries = view((1, THREE), (2, FOUR))
        assert roster_of(entries) == FOUR
        assert not judge(entries).primary
        assert judge(entries).why == "only 2 of 4 votes"

    def test_without_whoever_knows_the_former_one(self) -> None:
        entries = view((1, THREE), (3, THREE))
        assert judge(entries).primary

    def test_the_mark_goes_first(self) -> None:
        """Node 2 alone was told of a change in a view from which the chain went on without it."""
        entries = view((1, THREE, 6), (2, FOUR, 5), (3, THREE, 6))
        assert roster_of(entries) == THREE
        assert judge(entries).why == "3 of 3 votes"

    def test_who_is_new_has_no_vote_yet(self) -> None:
        assert judge(view((1, FOUR), (4, THREE, 0))).why.startswith("only 1 of 4 votes")
        assert judge(view((1, FOUR), (2, FOUR), (4, THREE, 0))).why.startswith("only 2 of 4 votes")
        assert judge(view((1, FOUR), (2, FOUR), (4, FOUR))).primary

    def test_a_former_disk_of_a_replaced_node_does_not_count(self) -> None:
        """3 comes back with the disk that it had before it was replaced: it may know less than it promised."""
        after = changed(THREE, change("replace", 3), Situation())
        entries = view((1, after, 6), (3, THREE, 5))
        assert entries[3].mark == NO_RING
        assert judge(entries).why.startswith("only 1 of 3 votes")
        assert judge(view((1, after, 6), (3, after, 6))).primary

    def test_who_was_removed_does_not_count(self) -> None:
        after = changed(THREE, change("remove", 3), Situation())
        assert judge(view((1, after, 6), (3, THREE, 6))).why == "only 1 of 2 votes"
        alone = view((3, after, 6))
        assert judge(alone).why == REMOVED.format(node=3)

    def test_not_even_if_it_is_the_last_one(self) -> None:
        """All nodes of the roster are one other: this one is not all."""
        after = changed(roster(1, 1), change("remove", 2), Situation())
        for says in (0, Says.OVERRIDE, Says.BOOTSTRAP):
            found = judge(counted({2: entry(2, after, says=int(says))}, {after.digest: after}))
            assert not found.primary

    def test_files_must_be_alike(self) -> None:
        one, two = Roster.of_file((peer(1), peer(2))), Roster.of_file((peer(1), peer(2, 2)))
        entries = view((1, one, 0), (2, one, 0))
        assert judge(entries).primary
        assert roster_of(entries) == replace(one, version=1)
        entries = view((1, one, 0), (2, two, 0))
        assert judge(entries).why == (
            "the [[nodes]] of these nodes' files differ from node 1's: that of node 2: node 2 has votes 2, not 1: "
            "make them alike"
        )

    def test_not_even_an_override_helps(self) -> None:
        one, two = Roster.of_file((peer(1), peer(2))), Roster.of_file((peer(1), peer(2, 2)))
        entries = {1: entry(1, one, 0, says=int(Says.OVERRIDE)), 2: entry(2, two, 0)}
        assert not judge(counted(entries, {one.digest: one, two.digest: two})).primary

    def test_a_file_does_not_count_where_there_is_a_roster(self) -> None:
        strange = Roster.of_file((peer(1), peer(4, 99)))
        entries = view((1, FOUR), (2, FOUR), (3, FOUR), (4, strange, 0))
        assert entries[4].votes == 1
        assert judge(entries).why.startswith("3 of 4 votes")

    def test_many_differences_are_not_all_named(self) -> None:
        one = Roster.of_file(peer(n) for n in range(1, 10))
        why = judge(view((1, one, 0), (2, Roster.of_file((peer(2),)), 0))).why
        assert "lacks node 1 (n1)" in why
        assert "4 more" in why

    def test_a_roster_that_nobody_has_sent(self) -> None:
        entries = counted({1: entry(1, THREE), 2: entry(2, FOUR)}, {THREE.digest: THREE})
        assert judge(entries).why == "node 2 counts by a roster that nobody has sent"

    def test_a_guess_that_is_older_than_what_was_in_force(self) -> None:
        """Found here (seed 404): 1 crashed in its first lap around a ring that nobody ever came to be in."""
        guess = (RingId(9, 1), THREE.digest), (RingId(4, 1), THREE.digest)
        entries = counted({1: entry(1, THREE, 9, names=guess), 2: entry(2, FOUR), 3: entry(3, FOUR)}, KNOWN)
        assert roster_of(entries) == FOUR
        assert judge(entries).why == "3 of 4 votes"

    def test_a_guess_may_be_what_counts_if_the_change_was_not_in_force(self) -> None:
        """Then by both, and the change is forgotten, as it would be had that view come to be."""
        guess = (RingId(9, 1), THREE.digest), (RingId(4, 1), THREE.digest)
        doubt, told = entry(1, THREE, 9, names=guess), entry(2, FOUR, pending=1)
        entries = counted({1: doubt, 2: told}, KNOWN)
        assert roster_of(entries) == THREE
        assert {each.also for each in entries.values()} == {(FOUR,)}
        assert judge(entries).why == "only 2 of 4 votes"
        entries = counted({1: doubt, 2: told, 3: entry(3, THREE)}, KNOWN)
        assert judge(entries).primary

    def test_a_guess_may_be_newer(self) -> None:
        guess = (RingId(9, 1), FOUR.digest), (RingId(4, 1), THREE.digest)
        entries = counted({1: entry(1, FOUR, 9, names=guess), 2: entry(2, THREE)}, KNOWN)
        assert roster_of(entries) == FOUR
        assert not judge(entries).primary
        entries = counted({1: entry(1, FOUR, 9, names=guess), 2: entry(2, THREE), 3: entry(3, THREE)}, KNOWN)
        assert judge(entries).primary

    def test_entries_without_rosters_stay_as_they_are(self) -> None:
        plain = {1: Entry(Member(1, 1), NO_RING, 3, {})}
        assert counted(plain, {}) == plain
        assert roster_of(plain) is None
