"""Verdicts on views: every policy, and that two primary views that follow each other share a member that knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from vsync.quorum import (
    Says,
    Terms,
    Verdict,
    base_of,
    bootstrapped,
    judge,
    known_lineage,
    lineage_of,
    marked,
    newest_mark,
    terms_of,
)
from vsync.types import NO_RING, POLICIES, Entry, Member, QuorumConfig, RingId

LINE = 77  #: a lineage
MAJORITY = QuorumConfig()
TIE = QuorumConfig(auto_tie_breaker=True)
WAIT = QuorumConfig(wait_for_all=True)
LMS = QuorumConfig("last_man_standing")
LMS_TIE = QuorumConfig("last_man_standing", auto_tie_breaker=True)

Base = tuple[tuple[int, int], ...]


def base(*nodes: int) -> Base:
    return tuple((node, 1) for node in nodes)


def entry(
    node: int,
    mark: int = 5,
    *,
    of: int = 5,
    votes: int = 1,
    expected: int | None = None,
    quorum: QuorumConfig = MAJORITY,
    bases: tuple[Base, ...] = (),
    before: int = 5,
    lineage: int = LINE,
    says: int = 0,
    first: int = 1,
) -> Entry:
    """Of a cluster of nodes 1 .. ``of``; ``mark`` is the sequence number of the last primary view, 0 for none;
    ``bases`` are of that and of ``before``.
    """
    return Entry(
        Member(node, 1),
        NO_RING,
        votes,
        {},
        of if expected is None else expected,
        RingId(mark, 1) if mark else NO_RING,
        lineage if mark else 0,
        tuple(zip((RingId(mark, 1), RingId(before, 1)), bases, strict=False)) if mark else (),
        of,
        first,
        int(terms_of(quorum)),
        says,
    )


def verdict(*entries: Entry) -> Verdict:
    return judge({each.member.node: each for each in entries})


def some(nodes: Iterable[int], **more: object) -> list[Entry]:
    return [entry(node, **more) for node in nodes]  # type: ignore[arg-type]


class TestMajority:
    @pytest.mark.parametrize(
        ("nodes", "of", "primary"),
        [((1,), 1, True), ((1,), 2, False), ((1, 2), 3, True), ((3,), 3, False), ((1, 2), 4, False),
         ((2, 3, 4), 4, True), ((1, 5), 5, False), ((1, 3, 5), 5, True)],
    )  # fmt: skip
    def test_more_than_half(self, nodes: tuple[int, ...], of: int, primary: bool) -> None:
        found = verdict(*some(nodes, of=of))
        assert found.primary == primary
        assert (found.votes, found.expected) == (len(nodes), of)
        assert found.chained

    def test_votes_count_not_nodes(self) -> None:
        heavy = entry(1, of=3, votes=3, expected=5)
        light = entry(2, of=3, expected=5), entry(3, of=3, expected=5)
        assert verdict(heavy).why == "3 of 5 votes"
        assert verdict(*light).why == "only 2 of 5 votes"

    def test_a_node_without_a_vote(self) -> None:
        assert not verdict(entry(1, of=3, expected=2), entry(3, of=3, votes=0, expected=2)).primary
        assert verdict(*some((1, 2), of=3, expected=2)).primary

    def test_not_whose_configurations_differ(self) -> None:
        found = verdict(entry(1), entry(2), entry(3, quorum=TIE))
        assert not found.primary
        assert found.why == "the [quorum] sections of these nodes differ: make them alike"


class TestMarks:
    """K8: a node without a mark has no vote."""

    def test_without_a_mark_no_vote(self) -> None:
        found = verdict(entry(1), entry(2), entry(3, 0))
        assert not found.primary
        assert found.why == "only 2 of 5 votes; node 3 has no vote before being in a primary view"
        assert verdict(entry(1), entry(2), entry(3), entry(4, 0)).primary

    def test_who_has_no_vote_is_named(self) -> None:
        """Else "2 of 3 votes" of three members is a riddle. Not who never has one."""
        later = some((3, 4), mark=0, of=6, expected=5), [entry(5, 0, of=6, expected=5, votes=0)]
        assert verdict(*some((1, 2), of=3), entry(3, 0, of=3)).why.startswith("2 of 3 votes; node 3 has no vote")
        found = verdict(*some((1, 2), of=6, expected=5), *later[0], *later[1])
        assert found.why.startswith("only 2 of 5 votes; nodes 3, 4 have no vote")

    def test_a_new_cluster_waits_for_all(self) -> None:
        found = verdict(*some((1, 2, 3), mark=0))
        assert not found.primary
        assert found.why == (
            "no node here has been in this cluster yet: 2 more must come, or run vsync bootstrap"
        )
        assert verdict(*some(range(1, 6), mark=0)).primary

    @pytest.mark.parametrize(("nodes", "primary"), [((1, 2, 3), True), ((4, 5), False)])
    def test_bootstrap(self, nodes: tuple[int, ...], primary: bool) -> None:
        """The word of one is enough; a majority is still needed."""
        entries = {each.member.node: each for each in some(nodes, mark=0)}
        first = nodes[0]
        entries[first] = replace(entries[first], says=int(Says.BOOTSTRAP))
        assert judge(entries).primary == primary == judge(bootstrapped(entries)).primary

    def test_bootstrap_means_nothing_where_there_is_a_mark(self) -> None:
        assert not verdict(entry(1), entry(2, 0, says=Says.BOOTSTRAP), entry(3, 0)).primary

    def test_override(self) -> None:
        found = verdict(entry(5, says=Says.OVERRIDE))
        assert found.primary
        assert found.why == "an operator has overridden the quorum"

    def test_not_even_by_override_if_configurations_differ(self) -> None:
        assert not verdict(entry(1, quorum=TIE), entry(2, says=Says.OVERRIDE)).primary

    def test_all_are_there_but_most_have_lost_their_disks(self) -> None:
        """No other part can act; but what 5 has stored is too old to go on."""
        found = verdict(*some((1, 2, 3), mark=0), entry(4), entry(5))
        assert found.primary
        assert not found.chained
        assert "all nodes are here, though only 2 of 5 votes" in found.why


class TestLineage:
    """C7."""

    def test_two_of_them(self) -> None:
        found = verdict(*some((1, 2, 3)), entry(4, lineage=LINE + 1))
        assert not found.primary
        assert found.why == "nodes of two lineages: one has the disk of another cluster"

    def test_even_if_all_are_there(self) -> None:
        assert not verdict(*some((1, 2, 3, 4)), entry(5, lineage=LINE + 1)).primary

    def test_a_primary_view_hands_its_lineage_on(self) -> None:
        entries = {1: entry(1, 0), 2: entry(2), 3: entry(3)}
        assert lineage_of(RingId(9, 1), entries) == LINE

    def test_a_first_view_names_a_new_one(self) -> None:
        entries = {n: entry(n, 0) for n in (1, 2)}
        names = {lineage_of(RingId(9, 1), entries), lineage_of(RingId(9, 2), entries)}
        names |= {lineage_of(RingId(8, 1), entries), lineage_of(RingId(9, 1), {1: entry(1, 0)})}
        assert len(names) == 4
        assert 0 not in names

    def test_who_crashed_in_the_first_view_belongs_to_it(self) -> None:
        """K7: it is not sure that there is such a chain; who has installed it is."""
        first = {n: entry(n, 0, of=3) for n in (1, 2, 3)}
        name = lineage_of(RingId(9, 1), first)
        crashed = entry(2, 9, of=3, lineage=name, bases=(base_of(first),), says=Says.UNSURE)
        installed = entry(1, 9, of=3, lineage=name, bases=(base_of(first),))
        assert verdict(installed, crashed).primary
        assert verdict(crashed, replace(crashed, member=Member(3, 1))).primary
        assert known_lineage([crashed]) == 0
        assert known_lineage([crashed, installed]) == name

    def test_a_second_view_keeps_the_name_of_the_first(self) -> None:
        """Though nobody is sure of that: whoever crashes now must know the same name as who installs it."""
        unsure = {n: entry(n, 9, of=3, says=Says.UNSURE) for n in (1, 2)}
        assert judge(unsure).primary
        assert lineage_of(RingId(11, 1), unsure) == LINE

    def test_unless_the_cluster_has_begun_without_it(self) -> None:
        """Then that first view never was, and its mark is none, however high."""
        stale = entry(5, 900, lineage=LINE + 1, bases=(base(1, 2, 3, 4, 5),), says=Says.UNSURE)
        entries = [*some((1, 2, 3)), stale]
        assert verdict(*entries).primary
        assert not verdict(entry(1), entry(2), stale).primary
        assert newest_mark(entries) == RingId(5, 1)
        assert stale not in marked(entries)
        assert lineage_of(RingId(11, 1), {each.member.node: each for each in entries}) == LINE

    def test_nor_if_others_have_gone_further(self) -> None:
        """Nobody has begun one for certain; what 3 had tried, 1 and 2 knew to be nothing when they tried again."""
        later = some((1, 2), mark=9, of=3, says=Says.UNSURE)
        earlier = entry(3, 7, of=3, lineage=LINE + 1, says=Says.UNSURE)
        assert verdict(*later, earlier).primary
        assert marked([*later, earlier]) == later


class TestTieBreaker:
    @pytest.mark.parametrize(
        ("nodes", "primary"), [((1, 2), True), ((3, 4), False), ((1,), False), ((2, 3, 4), True)]
    )
    def test_half_of_the_votes_with_the_lowest_node(self, nodes: tuple[int, ...], primary: bool) -> None:
        assert verdict(*some(nodes, of=4, quorum=TIE)).primary == primary

    def test_the_lowest_that_has_a_vote(self) -> None:
        """Node 1 watches only."""
        more = {"of": 5, "expected": 4, "quorum": TIE, "first": 2}
        watcher = entry(1, votes=0, of=5, expected=4, quorum=TIE, first=2)
        assert verdict(watcher, *some((2, 3), **more)).why == "2 of 4 votes, with node 2, which breaks the tie"
        assert not verdict(watcher, *some((3, 4), **more)).primary

    def test_not_if_it_has_lost_its_disk(self) -> None:
        assert not verdict(entry(1, 0, of=4, quorum=TIE), *some((3, 4), of=4, quorum=TIE)).primary


class TestWaitForAll:
    def test_after_a_start_of_all(self) -> None:
        waiting = some((1, 2, 3), quorum=WAIT, says=Says.WAITING)
        assert verdict(*waiting).why == "wait_for_all: all nodes must come together once after a start"
        assert not verdict(*waiting).primary

    def test_once_all_are_there(self) -> None:
        assert verdict(*some(range(1, 6), quorum=WAIT, says=Says.WAITING)).primary

    def test_one_who_has_been_there_is_enough(self) -> None:
        assert verdict(*some((1, 2), quorum=WAIT, says=Says.WAITING), entry(3, quorum=WAIT)).primary

    def test_it_adds_no_votes(self) -> None:
        assert not verdict(*some((1, 2), quorum=WAIT)).primary


class TestLastManStanding:
    """C8: a majority of the members of the newest primary view, whatever is configured."""

    @pytest.mark.parametrize(
        ("nodes", "last", "primary"),
        [
            ((1, 2, 3), (1, 2, 3, 4, 5), True),
            ((1, 2), (1, 2, 3, 4, 5), False),
            ((1, 2), (1, 2, 3), True),
            ((1, 4, 5), (1, 2, 3), False),
            ((1,), (1, 2), False),
            ((1, 3, 4, 5), (1, 2), False),
        ],
    )
    def test_of_the_last(self, nodes: tuple[int, ...], last: tuple[int, ...], primary: bool) -> None:
        assert verdict(*some(nodes, quorum=LMS, bases=(base(*last),))).primary == primary

    def test_never_the_other_way(self) -> None:
        """5 -> {1,2,3} -> {1,2}; then {3,4,5} is a majority of all, and 3 knows that it is none of the last."""
        old = some((4, 5), quorum=LMS, mark=5, bases=(base(1, 2, 3, 4, 5),))
        three = entry(3, 7, quorum=LMS, bases=(base(1, 2, 3),))
        assert verdict(three, *old).why == "only 1 of 3 votes"
        last = some((1, 2), mark=9, quorum=LMS, bases=(base(1, 2),))
        assert verdict(last[1], three, *old).why == "only 1 of 2 votes"
        assert verdict(*last).primary

    def test_down_to_one_with_the_tie_breaker(self) -> None:
        one, two = some((1, 2), quorum=LMS_TIE, bases=(base(1, 2),))
        assert verdict(one).primary
        assert not verdict(two).primary

    def test_the_tie_breaker_is_of_the_last_view(self) -> None:
        assert verdict(entry(3, quorum=LMS_TIE, bases=(base(3, 4),))).primary

    def test_in_doubt_both_count(self) -> None:
        """K7: the view of all may never have been. Who knows that it was not counts by {1,2,5}."""
        unsure = some((1, 3, 4), mark=9, quorum=LMS, bases=(base(1, 2, 3, 4, 5), base(1, 2, 5)))
        assert verdict(*unsure).why == "only 1 of 3 votes"
        two = entry(2, 5, quorum=LMS, bases=(base(1, 2, 5),))
        assert verdict(*unsure, two).primary

    def test_what_another_one_knows_for_certain_counts(self) -> None:
        """1 and 3 reached a view of all that, as 2 knows, has never been: 2 goes on alone from {2,3}, breaking
        the tie. 1 was not in {2,3}; 3 was (seed 3579 of the locks with 3 nodes).
        """
        one = entry(1, 9, of=3, quorum=LMS_TIE, bases=(base(1, 2, 3), base(1, 2, 3)), before=4)
        three = entry(3, 9, of=3, quorum=LMS_TIE, bases=(base(1, 2, 3), base(2, 3)), before=8)
        assert not verdict(one, three).primary
        two = entry(2, 8, of=3, quorum=LMS_TIE, bases=(base(2, 3),))
        assert verdict(one, two, three).primary

    def test_attempts_of_different_members_all_count(self) -> None:
        """Each may have come to be, and the last one stands alone: who knows of it must not be outvoted."""
        one = entry(1, 7, quorum=LMS, bases=(base(1, 2, 3), base(1, 2, 3, 4, 5)))
        four = entry(4, 8, quorum=LMS, bases=(base(2, 4, 5), base(1, 2, 3, 4, 5)))
        five = entry(5, 8, quorum=LMS, bases=(base(2, 4, 5), base(1, 2, 3, 4, 5)))
        assert verdict(one, four, five).why == "only 1 of 3 votes"

    def test_no_doubt_if_one_was_in_it(self) -> None:
        unsure = some((1, 3), mark=9, quorum=LMS, bases=(base(1, 2, 3, 4, 5), base(1, 2, 5)))
        sure = entry(4, 9, quorum=LMS, bases=(base(1, 2, 3, 4, 5),))
        assert verdict(*unsure, sure).primary

    def test_a_new_cluster_counts_what_is_configured(self) -> None:
        assert verdict(*some(range(1, 6), mark=0, quorum=LMS)).primary
        assert not verdict(*some((1, 2), mark=0, quorum=LMS, says=Says.BOOTSTRAP)).primary


class TestUnsafe:
    def test_two_node(self) -> None:
        """Either of two, once both have been there."""
        two = QuorumConfig("two_node")
        assert verdict(entry(2, of=2, quorum=two)).why == "1 of 2 votes, policy two_node"
        assert not verdict(entry(2, of=2, quorum=two, says=Says.WAITING)).primary
        assert not verdict(entry(1, 0, of=2, quorum=two)).primary
        assert not verdict(entry(1, of=3, quorum=two)).primary

    def test_none(self) -> None:
        found = verdict(entry(3, 0, quorum=QuorumConfig("none")))
        assert found.primary
        assert found.why == "policy none: every view is primary"

    def test_none_has_no_lineage(self) -> None:
        """Found here: each node would begin one of its own, and then refuse the others. Later there may be one."""
        assert lineage_of(RingId(9, 1), {1: entry(1, 0, quorum=QuorumConfig("none"))}) == 0
        nameless = {n: entry(n, lineage=0, of=3) for n in (1, 2)}
        assert judge(nameless).primary
        assert lineage_of(RingId(9, 1), nameless) > 0

    def test_every_policy_has_its_own_terms(self) -> None:
        assert len({terms_of(QuorumConfig(policy)) for policy in POLICIES}) == len(POLICIES)
        assert terms_of(QuorumConfig("two_node")) == Terms.TWO_NODE | Terms.WAIT_FOR_ALL


# ---------------------------------------------------------------- any sequence of views

Step = tuple[frozenset[int], frozenset[int]]  #: who is wiped first, then who forms a view


@st.composite
def histories(draw: st.DrawFn) -> tuple[QuorumConfig, dict[int, int], list[Step]]:
    count = draw(st.integers(2, 6))
    nodes = st.integers(1, count)
    votes = {node: draw(st.sampled_from((1, 1, 1, 0, 2))) for node in range(1, count + 1)}
    votes[draw(nodes)] = 1
    quorum = QuorumConfig(
        draw(st.sampled_from(("majority", "last_man_standing"))), draw(st.booleans()), draw(st.booleans())
    )
    views = st.frozensets(nodes, min_size=1)
    wiped = st.one_of(st.just(frozenset[int]()), st.frozensets(nodes, max_size=2))
    return quorum, votes, draw(st.lists(st.tuples(wiped, views), min_size=2, max_size=14))


@given(histories())
@settings(max_examples=300, deadline=None, phases=(Phase.reuse, Phase.generate, Phase.shrink))
def test_primaries_that_follow_each_other_share_one_that_knows(
    history: tuple[QuorumConfig, dict[int, int], list[Step]],
) -> None:
    """A node that was in the last primary view, and has stored so, is in the next; or all are there, and no old
    state goes on."""
    quorum, votes, steps = history
    count, expected = len(votes), sum(votes.values())
    first = min(node for node in votes if votes[node])
    everybody = frozenset(votes)
    fresh = {
        node: Entry(Member(node, 1), NO_RING, votes[node], {}, expected, nodes=count, first=first,
                    terms=int(terms_of(quorum)), says=int(Says.WAITING))
        for node in votes
    }  # fmt: skip
    known = dict(fresh)
    last = NO_RING
    for seq, (wiped, present) in enumerate([(frozenset[int](), everybody), *steps], 1):
        known.update({node: fresh[node] for node in wiped})
        entries = {node: known[node] for node in sorted(present)}
        found = judge(entries)
        if not found.primary:
            assert present != everybody
            continue
        knows = [node for node in present if entries[node].mark == last] if last.seq else [0]
        blank = not any(each.mark.seq for each in entries.values())  # all disks are lost: there is no state at all
        assert knows or blank or not found.chained, f"nobody of {sorted(present)} knows of {last}: {found.why}"
        assert (found.chained and not blank) or present == everybody
        last = RingId(seq, 1)
        _install(known, entries, last)


def _install(known: dict[int, Entry], entries: Mapping[int, Entry], view: RingId) -> None:
    lineage, bases = lineage_of(view, entries), ((view, base_of(entries)),)
    for node in entries:
        known[node] = replace(known[node], mark=view, lineage=lineage, bases=bases, says=0)
