"""The checkers, on hand-made traces: good ones pass, and each rule catches a bad one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from vsync.testing.checkers import Checkers
from vsync.testing.trace import Crashed, Delivered, Event, Sent, Started, Trace, Viewed, Withdrawn
from vsync.testing.violation import Violation
from vsync.types import NO_RING, Entry, Member, Peer, QuorumConfig, RingId, Timing, View

A, B, C, D, E = (Member(n, 1) for n in range(1, 6))
PEERS = tuple(Peer(n, f"n{n}", (f"127.0.0.1:{n}",)) for n in range(1, 6))
R1, R2, R3, R4 = (RingId(seq, 1) for seq in (10, 20, 30, 40))


def view(
    ring: RingId,
    members: Iterable[Member],
    previous: RingId = NO_RING,
    *,
    old: Iterable[Member] = (),
    stayed: Iterable[Member] = (),
    came_from: dict[Member, RingId] | None = None,
    primary: bool | None = None,
    mark: RingId | None = None,
    base: Iterable[Member] = (),
) -> View:
    """A regular view; joined, left and entries as they ought to be unless told otherwise."""
    members, old, stayed = tuple(members), tuple(old), tuple(stayed)
    mark = RingId(ring.seq - 1, 1) if mark is None else mark
    bases = ((mark, tuple((m.node, 1) for m in base)),)
    came_from = came_from or {m: previous if m in stayed else NO_RING for m in members}
    return View(
        id=ring,
        members=members,
        joined=tuple(m for m in members if m not in stayed),
        left=tuple(m for m in old if m not in stayed),
        primary=len(members) >= 3 if primary is None else primary,
        transitional=False,
        reason="test",
        entries={
            m.node: Entry(m, came_from.get(m, NO_RING), 1, {}, mark=mark, lineage=int(mark > NO_RING), bases=bases)
            for m in members
        },
        previous=previous,
    )


def trans(regular: View, members: Iterable[Member]) -> View:
    """The transitional view that belongs to a regular one."""
    return View(
        regular.id,
        tuple(members),
        (),
        regular.left,
        regular.primary,
        True,
        "test",
        regular.entries,
        regular.previous,
    )


def change(who: Member, regular: View, stayed: Iterable[Member]) -> list[Event]:
    return [Viewed(who, trans(regular, stayed)), Viewed(who, regular)]


def started(*members: Member) -> list[Event]:
    return [Started(m, kept=m.incarnation > 1) for m in members]


def first_view(*members: Member, ring: RingId = R1) -> list[Event]:
    """These have just started and form their first ring."""
    events = started(*members)
    for m in members:
        events += change(m, view(ring, members, stayed=(m,), came_from={}), (m,))
    return events


def together(ring: RingId, members: tuple[Member, ...], previous: RingId, old: tuple[Member, ...]) -> View:
    """A view of members that all come from the same ring."""
    return view(ring, members, previous, old=old, stayed=members)


def sent(who: Member, number: int, safe: bool = False) -> Sent:
    return Sent(who, number, digest=number, safe=safe)


def got(
    who: Member,
    origin: Member,
    number: int,
    position: int,
    *,
    author: Member | None = None,
    digest: int | None = None,
) -> Delivered:
    return Delivered(who, origin, author or origin, number, number if digest is None else digest, position, False)


def check(*events: Event | list[Event], quorum: QuorumConfig | None = None) -> Checkers:
    trace = Trace()
    checkers = Checkers(trace, PEERS, Timing(), quorum)
    for time, event in enumerate(e for part in events for e in (part if isinstance(part, list) else [part])):
        trace.add(event, time)
    assert checkers.quorum.chain is not None  # the last ones are judged when they are asked for
    return checkers


def breaks(rule: str, *events: Event | list[Event]) -> str:
    with pytest.raises(Violation) as caught:
        check(*events)
    assert caught.value.rule == rule, str(caught.value)
    return caught.value.text


class TestGoodTraces:
    def test_a_life_in_one_ring(self) -> None:
        checkers = check(
            first_view(A, B, C),
            [sent(A, 1), sent(B, 1), sent(A, 2)],
            [got(m, *m1) for m in (A, B, C) for m1 in ((A, 1, 1), (B, 1, 2), (A, 2, 3))],
        )
        assert checkers.messages.undelivered(A) == []
        assert checkers.quorum.chain == [R1]

    def test_a_split_with_a_hole_and_a_merge(self) -> None:
        """C's message 2 is lost to A and B, and what A sent after it they deliver behind the transitional view."""
        abc, ab, c = (A, B, C), (A, B), (C,)
        two = together(R2, ab, R1, abc)
        alone = view(RingId(20, 3), c, R1, old=abc, stayed=c)
        came = {A: R2, B: R2, C: RingId(20, 3)}
        merged_ab = view(R3, abc, R2, old=ab, stayed=ab, came_from=came)
        merged_c = view(R3, abc, RingId(20, 3), old=c, stayed=c, came_from=came)
        check(
            first_view(A, B, C),
            [sent(C, 1), sent(C, 2), sent(A, 1)],
            [got(m, C, 1, 1) for m in abc],
            [got(C, C, 2, 2), got(C, A, 1, 3)],
            [Viewed(A, trans(two, ab)), got(A, A, 1, 3), Viewed(A, two)],
            [Viewed(B, trans(two, ab)), got(B, A, 1, 3), Viewed(B, two)],
            change(C, alone, c),
            change(A, merged_ab, ab),
            change(B, merged_ab, ab),
            change(C, merged_c, c),
        )

    def test_a_restart_between_two_views(self) -> None:
        again = Member(3, 2)
        new = view(
            R2,
            (A, B, again),
            R1,
            old=(A, B, C),
            stayed=(A, B),
            came_from={A: R1, B: R1, again: NO_RING},
        )
        fresh = view(R2, (A, B, again), stayed=(again,), came_from={A: R1, B: R1})
        assert again in new.joined
        assert C in new.left
        check(
            first_view(A, B, C),
            Crashed(C, "crashed"),
            started(again),
            change(A, new, (A, B)),
            change(B, new, (A, B)),
            change(again, fresh, (again,)),
        )

    def test_a_refused_submission_is_no_message(self) -> None:
        checkers = check(first_view(A), sent(A, 1), Withdrawn(A, 1))
        assert checkers.messages.undelivered(A) == []

    def test_what_is_not_yet_delivered_is_told(self) -> None:
        assert check(first_view(A), sent(A, 1), sent(A, 2)).messages.undelivered(A) == [1, 2]


class TestMessages:
    def test_e1_never_sent(self) -> None:
        breaks("EVS-E1", first_view(A, B), got(A, B, 1, 1))

    def test_e1_wrong_sender(self) -> None:
        breaks("EVS-E1", first_view(A, B), sent(B, 1), got(A, A, 1, 1, author=B))

    def test_e1_other_bytes(self) -> None:
        breaks("EVS-E1", first_view(A, B), sent(B, 1), got(A, B, 1, 1, digest=99))

    def test_e2_twice(self) -> None:
        breaks("EVS-E2", first_view(A, B), sent(B, 1), got(A, B, 1, 1), got(A, B, 1, 2))

    def test_e3_outside_a_configuration(self) -> None:
        breaks("EVS-E3", first_view(B), started(A), sent(B, 1), got(A, B, 1, 1))

    def test_e4_in_two_rings(self) -> None:
        new = together(R2, (A,), R1, (A, B))
        breaks("EVS-E4", first_view(A, B), sent(B, 1), got(B, B, 1, 1), change(A, new, (A,)), got(A, B, 1, 1))

    def test_e13_not_the_same_set(self) -> None:
        new = together(R2, (A, B), R1, (A, B, C))
        text = breaks(
            "EVS-E13",
            first_view(A, B, C),
            sent(C, 1),
            got(A, C, 1, 1),
            change(A, new, (A, B)),
            change(B, new, (A, B)),
        )
        assert "node 3#1:1" in text

    def test_e13_the_transitional_view_in_different_places(self) -> None:
        new = together(R2, (A, B), R1, (A, B))
        breaks(
            "EVS-E13",
            first_view(A, B),
            sent(A, 1),
            [got(A, A, 1, 1), *change(A, new, (A, B))],
            [Viewed(B, trans(new, (A, B))), got(B, A, 1, 1), Viewed(B, new)],
        )

    def test_e14_own_message_passed_over(self) -> None:
        breaks("EVS-E14", first_view(A, B), sent(A, 1), sent(A, 2), got(A, A, 2, 2))

    def test_e14_a_companions_message_left_behind(self) -> None:
        new = together(R2, (A, B), R1, (A, B, C))
        breaks("EVS-E14", first_view(A, B, C), sent(B, 1), got(C, B, 1, 1), change(A, new, (A, B)))

    def test_e14_a_companions_message_found_later(self) -> None:
        new = together(R2, (A, B), R1, (A, B, C))
        breaks(
            "EVS-E14",
            first_view(A, B, C),
            [sent(B, 1), sent(A, 1), got(A, A, 1, 2), got(B, A, 1, 2)],
            [Viewed(B, trans(new, (A, B)))],
            change(A, new, (A, B)),
            [got(C, A, 1, 2), got(C, B, 1, 3)],
        )

    def test_e15_a_strangers_message_behind_the_gap(self) -> None:
        new = together(R2, (A, B), R1, (A, B, C))
        begin = [first_view(A, B, C), [sent(C, 1), sent(C, 2)]]
        left = [Viewed(A, trans(new, (A, B)))]
        breaks("EVS-E15", *begin, [got(C, C, 1, 2)], left, [got(A, C, 2, 3)])
        breaks("EVS-E15", *begin, left, [got(A, C, 2, 3)], [got(C, C, 1, 2)])
        check(*begin, [got(C, C, 1, 2)], left, [got(A, C, 1, 2), got(A, C, 2, 3)])  # blocked by a SAFE one

    def test_e16_a_hole_in_the_regular_part(self) -> None:
        breaks(
            "EVS-E16",
            first_view(A, B),
            [sent(B, 1), sent(B, 2), got(B, B, 1, 1), got(B, B, 2, 2)],
            got(A, B, 2, 2),
        )

    def test_e17_against_the_senders_order(self) -> None:
        breaks("EVS-E17", first_view(A, B), sent(B, 1), sent(B, 2), got(A, B, 2, 1), got(A, B, 1, 2))

    def test_e18_before_its_cause(self) -> None:
        """B answers what it delivered at 2, yet the answer stands at 1."""
        breaks("EVS-E18", first_view(A, B), sent(A, 1), got(B, A, 1, 2), sent(B, 1), got(A, B, 1, 1))

    def test_e19_two_orders(self) -> None:
        breaks(
            "EVS-E19",
            first_view(A, B),
            [sent(A, 1), sent(B, 1), got(A, A, 1, 1), got(A, B, 1, 2)],
            got(B, B, 1, 1),
        )

    def test_e19_two_messages_in_one_place(self) -> None:
        breaks("EVS-E19", first_view(A, B), sent(A, 1), sent(B, 1), got(A, A, 1, 1), got(B, B, 1, 1))

    def test_e19_backwards(self) -> None:
        breaks("EVS-E19", first_view(A, B), sent(A, 1), sent(B, 1), got(A, A, 1, 2), got(A, B, 1, 1))

    def test_e20_somebody_went_past_it(self) -> None:
        breaks("EVS-E20", first_view(A, B), sent(A, 1), sent(B, 1), got(A, A, 1, 2), got(B, B, 1, 1))


class TestSafe:
    """A SAFE message is delivered when all of the configuration are known to have it."""

    def test_good_delivered_on_both_sides_of_the_change(self) -> None:
        """A and B lose C: A knows that all have message 1, nobody knows it of message 2."""
        ab = (A, B)
        new = together(R2, ab, R1, (A, B, C))
        check(
            first_view(A, B, C),
            [sent(C, 1, safe=True), sent(C, 2, safe=True), sent(A, 1)],
            [got(m, C, 1, 1) for m in (A, B, C)],
            [e for m in ab for e in (Viewed(m, trans(new, ab)), got(m, C, 2, 2), got(m, A, 1, 3), Viewed(m, new))],
        )

    def test_e22_others_leave_without_it(self) -> None:
        new = together(R2, (B,), R1, (A, B))
        breaks("EVS-E22", first_view(A, B), sent(A, 1, safe=True), got(A, A, 1, 1), change(B, new, (B,)))

    def test_e22_others_had_left_without_it(self) -> None:
        new = together(R2, (B,), R1, (A, B))
        breaks("EVS-E22", first_view(A, B), sent(A, 1, safe=True), change(B, new, (B,)), got(A, A, 1, 1))

    def test_e22_who_crashed_owes_nothing(self) -> None:
        check(first_view(A, B), sent(A, 1, safe=True), Crashed(B, "crashed"), got(A, A, 1, 1))

    def test_e23_a_companion_has_gone_on_without_it(self) -> None:
        new, other = together(R2, (A, B), R1, (A, B, C)), together(R3, (B,), R1, (A, B, C))
        breaks(
            "EVS-E23",
            first_view(A, B, C),
            sent(C, 1, safe=True),
            change(B, other, (B,)),
            [Viewed(A, trans(new, (A, B))), got(A, C, 1, 1)],
        )

    def test_e24_past_a_safe_one_that_others_have(self) -> None:
        breaks(
            "EVS-E24",
            first_view(A, B),
            [sent(B, 1, safe=True), sent(B, 2), sent(A, 1), got(B, B, 1, 1), got(B, A, 1, 2)],
            got(A, A, 1, 2),
        )

    def test_e24_past_a_safe_one_that_comes_later(self) -> None:
        breaks("EVS-E24", first_view(A, B), sent(A, 1, safe=True), sent(B, 1), got(B, B, 1, 2), got(A, A, 1, 1))


class TestViews:
    def test_e3_a_dead_process_hears_nothing(self) -> None:
        breaks("EVS-E3", first_view(A), Crashed(A, "crashed"), Viewed(A, together(R2, (A,), R1, (A,))))

    def test_e5_without_itself(self) -> None:
        breaks("EVS-E5", started(A, B), Viewed(A, view(R1, (B,))))

    def test_e6_one_id_two_memberships(self) -> None:
        breaks("EVS-E6", first_view(A, B), started(C), change(C, view(R1, (B, C), stayed=(C,)), (C,)))

    def test_e6_an_id_used_again_after_a_restart(self) -> None:
        """Both processes of the node forgot that the id was used: what the stored ring id is for."""
        again = Member(1, 2)
        breaks(
            "EVS-E6",
            first_view(A),
            Crashed(A, "crashed"),
            Started(again, kept=False),
            change(again, view(R1, (again,), stayed=(again,)), (again,)),
        )

    def test_e7_ids_must_grow(self) -> None:
        lower = RingId(5, 1)
        breaks("EVS-E7", first_view(A, B), change(A, together(lower, (A,), R1, (A, B)), (A,)))

    def test_e7_also_over_a_restart(self) -> None:
        again = Member(1, 2)
        low = view(RingId(5, 1), (again,), stayed=(again,))
        breaks("EVS-E7", first_view(A), Crashed(A, "crashed"), started(again), change(again, low, (again,)))

    def test_e8_no_transitional_view(self) -> None:
        breaks("EVS-E8", first_view(A, B), Viewed(A, together(R2, (A, B), R1, (A, B))))

    def test_e8_another_ones_transitional_view(self) -> None:
        new, other = together(R2, (A,), R1, (A, B)), together(R3, (A,), R1, (A, B))
        breaks("EVS-E8", first_view(A, B), Viewed(A, trans(new, (A,))), Viewed(A, other))

    def test_e8_different_entries(self) -> None:
        mine = view(R1, (A, B), stayed=(A,))
        theirs = view(R1, (A, B), stayed=(B,), came_from={A: R4})
        breaks("EVS-E8", started(A, B), change(A, mine, (A,)), change(B, theirs, (B,)))

    def test_e9_a_stranger_in_the_transitional_view(self) -> None:
        new = together(R2, (A, B), R1, (A,))
        breaks("EVS-E9", first_view(A), started(B), change(A, new, (A, B)))

    def test_e9_two_transitional_views_of_one_change(self) -> None:
        new = together(R2, (A, B), R1, (A, B))
        breaks("EVS-E9", first_view(A, B), Viewed(A, trans(new, (A, B))), Viewed(B, trans(new, (B,))))

    def test_e9_a_wrong_past(self) -> None:
        breaks("EVS-E9", first_view(A), change(A, together(R3, (A,), R2, (A,)), (A,)))

    def test_e10_a_member_with_another_past(self) -> None:
        """B restarted unnoticed: it is in A's transitional view, but comes from nowhere."""
        came = {A: R1, B: NO_RING}
        mine = view(R2, (A, B), R1, old=(A, B), stayed=(A, B), came_from=came)
        theirs = view(R2, (A, B), stayed=(B,), came_from=came)
        forgotten: list[Event] = [Crashed(B, "crashed"), Started(B, kept=True)]
        breaks("EVS-E10", first_view(A, B), forgotten, change(A, mine, (A, B)), change(B, theirs, (B,)))

    @pytest.mark.parametrize("field", ["joined", "left"])
    def test_e11_wrong_deltas(self, field: str) -> None:
        new = view(R2, (A, C), R1, old=(A, B), stayed=(A,), came_from={A: R1})
        object.__setattr__(new, field, ())
        breaks("EVS-E11", first_view(A, B), started(C), change(A, new, (A,)))

    def test_e27_views_without_end(self) -> None:
        events = first_view(A)
        for seq in range(11, 60):
            events += change(A, together(RingId(seq, 1), (A,), RingId(seq - 1, 1), (A,)), (A,))
        breaks("EVS-E27", events)


class TestQuorum:
    def test_q1_a_minority_is_not_primary(self) -> None:
        breaks("QUO-Q1", started(A, B), change(A, view(R1, (A, B), stayed=(A,), primary=True), (A,)))

    def test_q1_a_majority_is(self) -> None:
        breaks("QUO-Q1", started(A, B, C), change(A, view(R1, (A, B, C), stayed=(A,), primary=False), (A,)))

    def test_q1_two_primaries_without_a_common_member(self) -> None:
        """As last_man_standing could have it, if marks did not tell who may vote."""
        quorum = QuorumConfig("last_man_standing")
        first = view(R1, (A, B, C), stayed=(A,), came_from={}, base=(A, B, C))
        apart = view(R2, (D, E), stayed=(D,), came_from={}, base=(D, E), primary=True)
        with pytest.raises(Violation, match=r"QUO-Q1.*shares nobody"):
            check(started(A, D), change(A, first, (A,)), change(D, apart, (D,)), quorum=quorum)

    def test_k8_nobody_knows_of_the_one_before(self) -> None:
        """C wiped its disk and votes with D and E all the same."""
        later = view(R3, (C, D, E), stayed=(C,), came_from={}, mark=RingId(5, 1))
        with pytest.raises(Violation, match=r"CHAIN-K8: nobody in primary 1.1e \(3, 4, 5\) knows of primary 1.a"):
            check(first_view(A, B, C), started(D), change(D, replace(later, joined=(C, E)), (D,)))

    def test_k8_without_a_mark_no_vote(self) -> None:
        bare = view(R1, (A, B, C), stayed=(A,), came_from={}, mark=NO_RING)
        breaks("QUO-Q1", started(A), change(A, bare, (A,)))

    def test_k8_all_are_there_and_begin_anew(self) -> None:
        new = view(R2, (A, B, C, D, E), stayed=(A,), came_from={}, mark=NO_RING)
        assert check(first_view(B, C, D), started(A), change(A, new, (A,))).quorum.chain == [R1, R2]

    def test_c7_one_of_another_cluster(self) -> None:
        mixed = view(R1, (A, B, C), stayed=(A,), came_from={})
        foreign = replace(mixed.entries[3], lineage=900)
        mixed = replace(mixed, entries={**mixed.entries, 3: foreign})
        breaks("CHAIN-C7", started(A), change(A, mixed, (A,)))
        check(started(A), change(A, replace(mixed, primary=False), (A,)))

    def test_k7_a_view_that_was_gone_through_in_an_instant_was_not_in_force(self) -> None:
        """A has to install the attempt R2 before R3; B and C, who know that nobody did, have gone on without."""
        trace = Trace()
        checkers = Checkers(trace, PEERS, Timing())
        for event in first_view(A, B, C):
            trace.add(event, 1)
        attempt = together(R2, (A, B, C), R1, (A, B, C))
        alone = view(R3, (A,), R2, old=(A, B, C), stayed=(A,))
        for event in change(A, attempt, (A, B, C)) + change(A, alone, (A,)):
            trace.add(event, 2)
        assert checkers.quorum.chain == [R1]

    def test_q2_two_verdicts(self) -> None:
        other = view(R1, (A, B, C), stayed=(B,), primary=False)
        breaks(
            "QUO-Q2",
            started(A, B, C),
            change(A, view(R1, (A, B, C), stayed=(A,)), (A,)),
            change(B, other, (B,)),
        )

    def test_q2_the_transitional_view_tells_the_same(self) -> None:
        new = together(R2, (A, B, C), R1, (A, B, C))
        wrong = trans(together(R2, (A, B, C), R1, (A, B, C)), (A, B, C))
        object.__setattr__(wrong, "primary", False)
        breaks("QUO-Q2", first_view(A, B, C), Viewed(A, wrong), Viewed(A, new))
