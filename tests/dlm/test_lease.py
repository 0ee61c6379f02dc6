"""Deadlines, horizons and generations by themselves (pitfalls K10, D1–D9)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dlm.lease import Lease, stretched
from dlm.recovery import Announcement
from vsync.types import NO_RING, Entry, Member, RingId, View

L = 2_000_000
OLD, NEW = RingId(10, 1), RingId(13, 1)
A, B, C = (Member(node, 1) for node in (1, 2, 3))


def view(ring: RingId, *members: Member, old: dict[int, RingId] | None = None, primary: bool = True) -> View:
    entries = {m.node: Entry(m, (old or {}).get(m.node, OLD), 1, {}) for m in members}
    return View(ring, members, (), (), primary, False, "", entries)


def host(basis: int | None, token: int) -> Any:
    return SimpleNamespace(lease_basis=basis, last_token=token)


def running(now: int = 100) -> Lease:
    lease = Lease(L)
    lease.installed(host(now, now), view(OLD, A, B, C), True, now)
    return lease


def test_a_lease_outlives_any_clock_within_the_drift() -> None:
    """Our clock may be 1 % fast and the other's 1 % slow."""
    assert stretched(L) * 99 // 101 >= L


def test_the_deadline_follows_the_basis_not_the_time_of_receipt() -> None:
    lease = running()
    lease.on_token(host(5_000, 900_000), 900_000)
    assert lease.deadline == 5_000 + L
    lease.on_token(host(4_000, 950_000), 950_000)
    assert lease.deadline == 5_000 + L  # it never shrinks while the ring lives


def test_no_lease_without_a_primary_view_or_a_life() -> None:
    for primary, current in ((False, True), (True, False)):
        lease = running()
        assert lease.valid(200)
        lease.installed(host(300, 300), view(NEW, A, primary=primary), current, 300)
        assert lease.deadline == 0
        lease.on_token(host(400, 400), 400)
        assert not lease.valid(400)


def test_a_ring_of_one_needs_nobody() -> None:
    lease = Lease(L)
    lease.installed(host(None, 0), view(OLD, A), True, 1_000)
    assert lease.deadline == 1_000 + L
    due = lease.next_deadline(False)
    assert due is not None
    lease.renew(host(None, 0), due)
    assert lease.deadline == due + L
    assert lease.next_deadline(False) > due
    lease.announced()  # it is about to join others, which takes longer than this timer
    assert lease.next_deadline(False) is None


@pytest.mark.parametrize(
    ("members", "old", "clean", "waits"),
    [
        ((A, B, C), {}, (), False),
        ((A, B), {}, (), True),
        ((A, B), {}, (C,), False),
        ((A, B, C), {3: NO_RING}, (), True),
        ((A, B, Member(3, 2)), {3: NO_RING}, (), True),
        ((A, B, C), {3: RingId(11, 3)}, (), True),
    ],
)
def test_who_makes_others_wait(
    members: tuple[Member, ...], old: dict[int, RingId], clean: tuple[Member, ...], waits: bool
) -> None:
    lease = running()
    lease.on_token(host(500, 600), 600)
    lease.announced()
    lease.on_token(host(None, 9_000), 9_000)  # a token of the ring being formed does not count
    lease.left_primary(view(OLD, A, B, C), view(NEW, *members, old=old), frozenset(clean), 7, 10_000)
    assert lease.horizon == (600 + stretched(L) if waits else 0)
    assert lease.settled == (7 if waits else 0)


def test_a_second_departure_while_waiting_settles_nothing_new() -> None:
    lease = running()
    lease.left_primary(view(OLD, A, B, C), view(NEW, A, B), frozenset(), 7, 1_000)
    lease.left_primary(view(OLD, A, B, C), view(NEW, A, B), frozenset(), 20, 2_000)
    assert lease.settled == 7
    lease.left_primary(view(OLD, A, B, C), view(NEW, A, B), frozenset(), 30, lease.horizon)
    assert lease.settled == 30


def test_a_new_generation_ends_everything() -> None:
    lease = running()
    lease.left_primary(view(OLD, A, B, C), view(NEW, A, B), frozenset(), 7, 1_000)
    horizon = lease.horizon
    lease.new_generation()
    assert (lease.generation, lease.deadline, lease.settled) == (2, 0, 0)
    assert lease.horizon == horizon


def said(
    ring: RingId, old: RingId, complete: bool = True, waiting: bool = False, members: tuple[Member, ...] = ()
) -> tuple[Entry, Announcement]:
    return Entry(B, old, 1, {}), Announcement(ring, 5, complete, ring, waiting, members)


@pytest.mark.parametrize(
    ("words", "waits"),
    [
        ([said(OLD, OLD, members=(B,))], False),
        ([said(OLD, OLD, members=(B, C))], True),
        ([said(OLD, OLD, waiting=True, members=(B,))], True),
        ([said(OLD, RingId(11, 2), members=(B,))], True),
        ([said(NO_RING, NO_RING, complete=False)], True),
    ],
)
def test_when_a_newcomer_waits(words: list[tuple[Entry, Announcement]], waits: bool) -> None:
    lease = Lease(L)
    lease.entered_primary(NO_RING, dict(enumerate(words)), 1_000)
    assert lease.horizon == (1_000 + stretched(L) if waits else 0)


def test_a_member_of_that_ring_has_its_own_horizon() -> None:
    lease = Lease(L)
    lease.entered_primary(OLD, {2: said(OLD, OLD, members=(B, C))}, 1_000)
    assert lease.horizon == 0
