"""Lockspaces: registry, permissions, value limits, and the release in two steps (locks.md §1.13, E11)."""

from __future__ import annotations

import random
from typing import Any

import pytest

from dlm.arguments import MAX_VALUE_LIMIT, PERMISSIONS, VALUE_LIMIT
from dlm.messages import Kind, key_of, prefix_of
from dlm.modes import EX, NL, PR
from dlm.names import Form
from dlm.service import DlmService
from dlm.spaces import CREATE, DEFAULT, EXCLUSIVE, MAX_PER_USER, MAX_SPACES, OPEN, Space, Spaces
from dlm.table import Table
from tests.dlm.bus import LEASE, MS, Bus
from vsync.service import Credentials

SECOND = 1000 * MS
ANN, BOB = 1001, 1002


class TestRegistry:
    def test_the_default_is_there_for_everybody(self) -> None:
        spaces = Spaces()
        assert [space.name for space in spaces] == ["default"]
        assert DEFAULT.permits(ANN, ANN)
        assert not DEFAULT.owned_by(0)
        assert spaces.refuses(key_of("default", b"x")) == ""
        assert spaces.encode() == ()

    def test_what_to_do_if_it_is_there_and_if_not(self) -> None:
        spaces = Spaces()
        assert spaces.refuses(key_of("a", b"x")) == "no_space"
        assert spaces.create(Space("a"), OPEN) == "no_space"
        assert spaces.create(Space("a", uid=ANN), CREATE) == ""
        assert spaces.create(Space("a", uid=BOB), CREATE) == ""
        assert spaces.create(Space("a"), OPEN) == ""
        assert spaces.create(Space("a"), EXCLUSIVE) == "space_exists"
        assert spaces.by_name["a"].uid == ANN
        assert spaces.refuses(key_of("a", b"x")) == ""
        assert spaces.refuses(key_of("aa", b"x")) == "no_space"

    def test_there_is_a_limit_for_a_user_and_for_all(self) -> None:
        spaces = Spaces()
        for number in range(MAX_PER_USER):
            assert spaces.create(Space(f"ann{number}", uid=ANN), CREATE) == ""
        assert spaces.create(Space("one more", uid=ANN), CREATE) == "too_many"
        assert spaces.create(Space("ann0", uid=ANN), CREATE) == ""
        for number in range(MAX_SPACES - MAX_PER_USER - 1):
            assert spaces.create(Space(f"root{number}"), CREATE) == ""
        assert spaces.create(Space("one more"), CREATE) == "too_many"

    @pytest.mark.parametrize(
        ("permissions", "owner", "group", "other"),
        [
            (0o660, True, True, False),
            (0o600, True, False, False),
            (0o666, True, True, True),
            (0o060, False, True, False),
            (0o006, False, False, True),
            (0o640, True, False, False),
            (0o440, False, False, False),
            (0o777, True, True, True),
        ],
    )
    def test_permissions_are_those_of_a_file(self, permissions: int, owner: bool, group: bool, other: bool) -> None:
        space = Space("a", ANN, 50, permissions)
        assert space.permits(ANN, 1) is owner
        assert space.permits(BOB, 50) is group
        assert space.permits(BOB, 51) is other
        assert space.permits(0, 0)
        assert [space.owned_by(uid) for uid in (0, ANN, BOB)] == [True, True, False]

    def test_the_first_class_that_fits_decides(self) -> None:
        assert not Space("a", ANN, 50, 0o066).permits(ANN, 50)
        assert not Space("a", ANN, 50, 0o606).permits(BOB, 50)

    def test_it_survives_a_snapshot(self) -> None:
        table = Table(1)
        table.spaces.create(Space("b", 5, 6, 0o600, 99, 7), CREATE)
        table.spaces.create(Space("a", 1, 2, 0o666, 64, 3), CREATE)
        copy = Table.decode(2, table.encode(), 0)
        assert copy.encode() == table.encode()
        assert [space.row() for space in copy.spaces] == [space.row() for space in table.spaces]


# -- over the bus --------------------------------------------------------------------------------------------


def done(bus: Bus, node: int, verb: str, **args: Any) -> Any:
    """Call and run; the answer."""
    rid = bus.call(node, verb, **args)
    bus.run()
    return bus.result(rid)


def made(bus: Bus, name: str = "web", *nodes: int, **args: Any) -> None:
    """The lockspace is made at node 1 and open in session 1 of these nodes."""
    assert done(bus, 1, "space_create", space=name, **args)["name"] == name
    for node in nodes:
        assert done(bus, node, "space_open", space=name)["name"] == name


def as_user(bus: Bus, node: int, uid: int) -> int:
    """A session of that user; its number."""
    session = 1000 + uid
    bus[node].service.open(session, Credentials(7, uid, uid, "someone"), bus.now)
    return session


def refusals(bus: Bus, node: int) -> list[tuple[str, str, str]]:
    """(code, rule, text) of what this node refuses from now on."""
    said: list[tuple[str, str, str]] = []
    refuse = bus[node].host.refuse

    def listen(session: int, rid: int, code: str, message: str, **more: Any) -> None:
        said.append((code, str(more.get("rule", "")), message))
        refuse(session, rid, code, message, **more)

    bus[node].host.refuse = listen  # type: ignore[method-assign]
    return said


class TestMaking:
    def test_it_is_made_once_and_the_same_everywhere(self) -> None:
        bus = Bus()
        first = bus.call(1, "space_create", space="web")
        second = bus.call(2, "space_create", space="web", permissions=0o666)
        bus.run()
        assert bus.result(first) == bus.result(second)
        assert bus.result(first)["permissions"] == PERMISSIONS
        assert bus.result(first)["value_limit"] == VALUE_LIMIT
        rows = [bus.result(bus.call(node, "space_ls")) for node in (1, 2, 3)]
        assert rows[0] == rows[1] == rows[2]
        assert [row["name"] for row in rows[0]] == ["default", "web"]
        bus.check_at_rest()

    def test_of_two_exclusive_creations_one_wins(self) -> None:
        bus = Bus()
        first = bus.call(1, "space_create", space="web", exclusive=True)
        second = bus.call(2, "space_create", space="web", exclusive=True)
        bus.run()
        assert bus.result(first)["name"] == "web"
        assert bus.result(second) == "space_exists"
        assert bus.result(bus.call(2, "lock", h=99, name=b"x", mode=EX, space="web")) == "no_space"

    def test_opening_what_another_node_has_just_made_takes_its_place_in_the_order(self) -> None:
        bus = Bus()
        bus.call(1, "space_create", space="web")
        bus.sequence(1)
        bus.deliver(1)  # node 1's user knows it, and tells somebody at node 2 ..
        rid = bus.call(2, "space_open", space="web")  # .. whose node does not know it yet
        assert bus.result(rid) is None
        bus.run()
        assert bus.result(rid)["name"] == "web"

    def test_opening_what_is_known_costs_no_message(self) -> None:
        bus = Bus()
        made(bus, "web")
        before = bus.submitted
        assert bus.result(bus.call(2, "space_open", space="web"))["name"] == "web"
        assert bus.result(bus.call(2, "space_create", space="web"))["name"] == "web"
        assert bus.submitted == before

    def test_opening_what_is_not_there(self) -> None:
        bus = Bus()
        said = refusals(bus, 2)
        assert done(bus, 2, "space_open", space="web") == "no_space"
        assert said[0][1] == "E11"
        assert "dlm space create" in said[0][2]

    def test_too_many(self) -> None:
        bus = Bus()
        session = as_user(bus, 1, ANN)
        for number in range(MAX_PER_USER):
            bus.call(1, "space_create", session, space=f"s{number}")
        bus.run()
        assert done(bus, 1, "space_create", session=session, space="more") == "too_many"
        bus.check_at_rest()

    @pytest.mark.parametrize(
        ("verb", "args"),
        [
            ("space_create", {"space": ""}),
            ("space_create", {"space": "x" * 65}),
            ("space_create", {"space": 7}),
            ("space_create", {"space": ["x"]}),
            ("space_create", {"space": "a\0b"}),
            ("space_create", {"space": "a", "permissions": 0o1777}),
            ("space_create", {"space": "a", "permissions": "rw"}),
            ("space_create", {"space": "a", "value_limit": 0}),
            ("space_create", {"space": "a", "value_limit": MAX_VALUE_LIMIT + 1}),
            ("space_create", {"space": "a", "no_quorum": "maybe"}),
            ("space_release", {"space": "a", "force": 3}),
            ("space_open", {"space": "é" * 33}),
        ],
    )
    def test_nonsense(self, verb: str, args: dict[str, Any]) -> None:
        bus = Bus()
        assert bus.result(bus.call(1, verb, **args)) == "invalid"
        assert bus.submitted == 0


class TestUsing:
    def test_names_in_different_spaces_do_not_meet(self) -> None:
        bus = Bus()
        made(bus, "web", 2)
        made(bus, "web2", 3)
        rids = [bus.lock(node, b"x", EX, space=name)[0] for node, name in ((1, "default"), (2, "web"), (3, "web2"))]
        bus.run()
        assert all(bus.granted(rid) for rid in rids)
        rows = done(bus, 2, "ls", space="web")
        assert [(row["name"], row["space"]) for row in rows] == [(b"x", "web")]
        counts = {row["name"]: row["names"] for row in bus.result(bus.call(1, "space_ls"))}
        assert counts == {"default": 1, "web": 1, "web2": 1}

    @pytest.mark.parametrize("verb", ["lock", "lock_all"])
    def test_e11_it_must_be_open(self, verb: str) -> None:
        bus = Bus()
        made(bus, "web")
        said = refusals(bus, 2)

        def ask() -> int:
            names = (b"x",) if verb == "lock" else (b"x", b"y")
            rid: int = getattr(bus, verb)(2, *names, space="web")[0]
            return rid

        assert bus.result(ask()) == "no_space"
        assert said[0][1] == "E11"
        assert "space_open" in said[0][2]
        bus.call(2, "space_open", space="web")
        rid = ask()
        bus.run()
        assert isinstance(bus.result(rid), dict)
        bus.check_at_rest()

    def test_permissions(self) -> None:
        bus = Bus()
        ann, bob = as_user(bus, 1, ANN), as_user(bus, 2, BOB)
        assert done(bus, 1, "space_create", session=ann, space="web")["uid"] == ANN
        assert done(bus, 2, "space_open", session=bob, space="web") == "permission"
        assert done(bus, 2, "space_create", session=bob, space="web") == "permission"
        assert bus.result(bus.call(2, "lock", bob, h=9, name=b"x", mode=EX, space="web")) == "no_space"
        assert bus.result(bus.call(2, "ls", bob, space="web")) == "permission"
        assert bus.result(bus.call(2, "show", bob, space="web", name=b"x")) == "permission"
        assert done(bus, 2, "space_release", session=bob, space="web") == "permission"
        assert done(bus, 2, "space_open", space="web")["uid"] == ANN  # root may
        assert done(bus, 2, "space_release", space="web") == {}

    def test_permission_is_looked_at_when_the_answer_comes(self) -> None:
        """Two users make it at once: the second one finds it made, and not for him."""
        bus = Bus()
        first = bus.call(1, "space_create", as_user(bus, 1, ANN), space="web")
        second = bus.call(2, "space_create", as_user(bus, 2, BOB), space="web")
        bus.run()
        assert bus.result(first)["uid"] == ANN
        assert bus.result(second) == "permission"

    def test_e7_the_value_limit_is_that_of_the_space(self) -> None:
        bus = Bus()
        made(bus, "big", 2, value_limit=MAX_VALUE_LIMIT)
        made(bus, "small", value_limit=3)
        said = refusals(bus, 1)
        _, big = bus.lock(1, b"x", EX, space="big")
        _, small = bus.lock(1, b"x", EX, space="small")
        _, usual = bus.lock(1, b"x", EX)
        bus.run()
        for h, limit in ((big, MAX_VALUE_LIMIT), (small, 3), (usual, VALUE_LIMIT)):
            down = {"h": h, "mode": PR, "valblk": True}
            assert bus.result(bus.call(1, "convert", value=b"v" * (limit + 1), **down)) == "invalid"
            assert said[-1][1] == "E7"
            assert f"{limit} bytes" in said[-1][2]
            assert done(bus, 1, "convert", value=b"v" * limit, **down)["mode"] == PR
            assert bus.result(bus.call(1, "unlock", h=h, value=b"v" * (limit + 1))) == "invalid"
        read, _ = bus.lock(2, b"x", PR, space="big", valblk=True)
        bus.run()
        assert bus.result(read)["value"] == b"v" * MAX_VALUE_LIMIT
        bus.check_at_rest()

    def test_closing_it_frees_the_locks_of_the_session(self) -> None:
        bus = Bus()
        made(bus, "web", 2, 3)
        mine, _ = bus.lock(1, b"x", EX, space="web")
        kept, _ = bus.lock(1, b"x", EX)
        bus.run()
        waits, _ = bus.lock(2, b"x", EX, space="web")
        third, _ = bus.lock(1, b"y", EX, space="web")
        bus.run()
        blocked, blocked_h = bus.lock(1, b"x", PR, space="web")
        bus.run()
        for who in [who for who, held in bus.handles.items() if who[0].node == 1 and held.key.startswith(b"web")]:
            del bus.handles[who]  # the client ends them first (D8)
        assert done(bus, 1, "space_close", space="web") == {}
        assert bus.granted(mine)
        assert bus.granted(third)
        assert bus.granted(waits)
        assert bus.result(blocked) == "canceled"
        assert bus.result(bus.call(1, "unlock", h=blocked_h)) == "unknown"
        assert bus.granted(kept)
        assert bus.result(bus.call(1, "lock", h=77, name=b"x", mode=EX, space="web")) == "no_space"
        assert done(bus, 1, "space_close", space="web") == "no_space"
        bus.handles.clear()
        assert done(bus, 1, "space_close", space="default") == {}
        again, _ = bus.lock(1, b"x", EX)
        bus.run()
        assert bus.granted(again)
        bus.check_at_rest()


class TestRelease:
    def test_an_empty_one_goes(self) -> None:
        bus = Bus()
        made(bus, "web", 2)
        assert done(bus, 1, "space_release", space="web") == {}
        assert [row["name"] for row in done(bus, 3, "space_ls")] == ["default"]
        assert bus.result(bus.call(2, "lock", h=9, name=b"x", mode=EX, space="web")) == "no_space"
        assert done(bus, 1, "space_release", space="web") == "no_space"
        bus.check_at_rest()

    def test_the_default_stays(self) -> None:
        bus = Bus()
        assert done(bus, 1, "space_release", space="default", force=2) == "permission"

    @pytest.mark.parametrize(
        ("holder", "force", "released"),
        [(1, 0, False), (1, 1, False), (1, 2, True), (2, 0, False), (2, 1, True), (2, 2, True)],
    )
    @pytest.mark.parametrize("shared", [False, True])
    def test_how_much_force_it_takes(self, holder: int, force: int, released: bool, shared: bool) -> None:
        """0: no locks at all; 1: none of the releasing node; 2: regardless."""
        bus = Bus()
        made(bus, "web", 2, 3)
        rid, h = bus.lock(holder, b"x", EX, space="web")
        bus.run()
        if shared:
            other, other_h = bus.lock(3, b"x", NL, space="web")
            bus.run()
            assert bus.granted(other)
            bus.call(3, "unlock", h=other_h)
            bus.run()
        assert bus.granted(rid)
        answer = done(bus, 1, "space_release", space="web", force=force)
        assert answer == ({} if released else "space_busy")
        lost = (1, "lost", {"h": h, "reason": "released"})
        assert (lost in bus[holder].pushes) is released
        assert bus[1].table.spaces.closing == 0
        again = bus.call(1, "space_create", space="web")
        bus.run()
        assert bus.result(again)["name"] == "web"
        if not released:
            bus.call(holder, "unlock", h=h)
        fresh, _ = bus.lock(1, b"x", EX, space="web")
        bus.run()
        assert bus.granted(fresh)
        bus.check_at_rest()

    @pytest.mark.parametrize("force", [0, 1])
    def test_the_releasing_node_lets_nobody_in_meanwhile(self, force: int) -> None:
        """It has seen that it has no locks there itself, and asks itself no more."""
        bus = Bus()
        made(bus, "web")
        bus.call(1, "space_open", session=2, space="web")
        _, h = bus.lock(1, b"x", EX, space="web")
        bus.run()
        bus.call(1, "unlock", h=h)
        before = bus.submitted
        rid = bus.call(1, "space_release", space="web", force=force)
        assert bus.result(bus.lock(1, b"x", EX, session=2, space="web")[0]) == "closing"
        bus.run()
        assert bus.result(rid) == {}
        assert bus.submitted == before + 1

    def test_not_even_when_the_release_by_another_node_has_failed(self) -> None:
        bus = Bus()
        made(bus, "web", 2, 3)
        _, idle = bus.lock(1, b"x", EX, space="web")
        busy, _ = bus.lock(3, b"y", EX, space="web")
        bus.run()
        bus.call(1, "unlock", h=idle)
        theirs = bus.call(2, "space_release", space="web")
        ours = bus.call(1, "space_release", space="web", force=1)
        bus.sequence(2)
        bus.deliver()
        bus.sequence(3)  # busy
        bus.deliver()
        assert bus.granted(busy)
        assert bus.result(theirs) == "space_busy"
        assert bus.result(bus.lock(1, b"x", EX, space="web")[0]) == "closing"
        bus.run()
        assert bus.result(ours) == {}
        bus.check_at_rest()

    def test_of_two_releases_the_first_counts(self) -> None:
        bus = Bus()
        made(bus, "web", 2)
        _, h = bus.lock(2, b"x", EX, space="web")
        bus.run()
        bus.call(2, "unlock", h=h)
        bus.run()
        first, second = (bus.call(node, "space_release", space="web") for node in (1, 2))
        taken, _ = bus.lock(2, b"y", EX, space="web")
        assert bus.result(taken) == "closing"
        bus.sequence(1, 2)
        bus.run()
        assert bus.result(first) == {}
        assert bus.result(second) == "closing"
        bus.check_at_rest()

    def test_waiters_hear_why(self) -> None:
        bus = Bus()
        made(bus, "web", 2, 3)
        bus.lock(2, b"x", EX, space="web")
        bus.run()
        waits, h = bus.lock(3, b"x", EX, space="web")
        bus.run()
        said = refusals(bus, 3)
        assert done(bus, 1, "space_release", space="web", force=2) == {}
        assert bus.result(waits) == "no_space"
        assert said[0][1] == "E11"
        assert bus.result(bus.call(3, "unlock", h=h)) == "unknown"

    def test_names_that_were_used_and_are_idle_do_not_matter(self) -> None:
        bus = Bus()
        made(bus, "web", 2, 3)
        for node in (1, 2, 3):
            _, h = bus.lock(node, b"n%d" % node, EX, space="web")
            bus.run()
            bus.call(node, "unlock", h=h)
            bus.run()
        assert len(bus[1].table.names) == 3
        assert done(bus, 1, "space_release", space="web") == {}
        assert not bus[1].table.names
        bus.advance(20 * SECOND)  # the owners' give-backs would fall due
        bus.check_at_rest()

    def closing(self) -> tuple[Bus, int]:
        """Node 2 owns an idle name; the release has been delivered, node 2 has not answered."""
        bus = Bus()
        made(bus, "web", 2, 3)
        _, h = bus.lock(2, b"x", EX, space="web")
        bus.run()
        bus.call(2, "unlock", h=h)
        bus.run()
        rid = bus.call(1, "space_release", space="web")
        bus.sequence(1)
        bus.deliver()
        assert bus.kinds(2) == [Kind.SPACE_ANSWER]
        return bus, rid

    def test_it_is_closing_until_the_owners_have_answered(self) -> None:
        bus, rid = self.closing()
        assert bus.result(rid) is None
        assert [space["closing"] for space in bus.result(bus.call(3, "space_ls"))] == [False, True]
        said = refusals(bus, 3)
        assert bus.result(bus.call(3, "lock", h=9, name=b"y", mode=EX, space="web")) == "closing"
        assert "being released" in said[0][2]
        assert bus.result(bus.call(2, "lock", h=9, name=b"x", mode=EX, space="web")) == "closing"
        assert bus.result(bus.call(2, "space_release", space="web", force=2)) == "closing"
        asked = bus.call(2, "space_open", space="web")
        bus.run()
        assert bus.result(asked) == "no_space"  # behind the answer it has gone
        assert bus.result(rid) == {}
        bus.check_at_rest()

    def test_a_request_on_its_way_is_refused_at_its_position(self) -> None:
        bus = Bus()
        made(bus, "web", 2, 3)
        _, h = bus.lock(2, b"x", EX, space="web")
        bus.run()
        bus.call(2, "unlock", h=h)
        bus.run()
        rid = bus.call(1, "space_release", space="web")
        stranger, _ = bus.lock(3, b"x", EX, space="web")
        claim, _ = bus.lock(3, b"new", EX, space="web")
        together = bus.call(3, "lock_all", h=70, locks=[(b"p", EX), (b"q", EX)], space="web")
        bus.sequence(1, 3)
        bus.run()
        assert bus.result(rid) == {}
        assert bus.result(stranger) in ("closing", "no_space")
        assert bus.result(claim) in ("closing", "no_space")
        assert bus.result(together) in ("closing", "no_space")
        assert not bus[2].table.names
        bus.check_at_rest()

    def test_a_lock_that_comes_first_makes_it_busy(self) -> None:
        bus = Bus()
        made(bus, "web", 2, 3)
        lock, _ = bus.lock(3, b"new", EX, space="web")
        rid = bus.call(1, "space_release", space="web")
        bus.sequence(3, 1)
        bus.run()
        assert bus.granted(lock)
        assert bus.result(rid) == "space_busy"
        again, _ = bus.lock(2, b"other", EX, space="web")
        bus.run()
        assert bus.granted(again)
        bus.check_at_rest()

    def test_a_handover_in_progress_makes_it_busy(self) -> None:
        bus = Bus()
        made(bus, "web", 2, 3)
        first, _ = bus.lock(1, b"x", NL, space="web")
        bus.run()
        bus.call(1, "unlock", h=1)
        bus.run()
        stranger, _ = bus.lock(3, b"x", EX, space="web")
        rid = bus.call(1, "space_release", space="web")
        bus.sequence(3, 1)
        bus.deliver()
        assert bus[2].table.names[key_of("web", b"x")].form is Form.HANDOVER
        bus.run()
        assert bus.granted(first)
        assert bus.granted(stranger)
        assert bus.result(rid) == "space_busy"
        bus.check_at_rest()

    def test_the_owner_who_was_asked_dies(self) -> None:
        bus, rid = self.closing()
        bus[2].queue.clear()
        bus.kill(2)
        bus.view([1, 3])
        bus.run()
        assert bus.result(rid) == {}
        assert [space.name for space in bus[3].table.spaces] == ["default"]
        bus.check_at_rest()

    def test_the_owner_who_was_asked_leaves(self) -> None:
        bus, rid = self.closing()
        bus[2].service.leaving(bus.now)
        bus[2].service.fire(bus.now)
        bus.advance(SECOND)
        assert bus[2].service.may_leave()
        assert bus.result(rid) == {}

    def test_the_answer_is_sent_again_in_the_next_view(self) -> None:
        bus, rid = self.closing()
        bus[2].queue.clear()  # it never left
        bus.view([1, 2, 3])
        bus.run()
        assert bus.result(rid) == {}
        bus.check_at_rest()

    def test_who_asked_for_the_release_dies(self) -> None:
        bus, _ = self.closing()
        bus.kill(1)
        bus.view([2, 3])
        bus.run()
        assert [space.name for space in bus[3].table.spaces] == ["default"]
        bus.check_at_rest()

    def test_a_late_answer_to_an_earlier_release_counts_for_nothing(self) -> None:
        bus = Bus()
        made(bus, "web", 2, 3)
        held, h = bus.lock(3, b"y", EX, space="web")
        _, idle = bus.lock(2, b"x", EX, space="web")
        bus.run()
        bus.call(2, "unlock", h=idle)
        bus.run()
        first = bus.call(1, "space_release", space="web")
        bus.sequence(1)
        bus.deliver()
        bus.sequence(3)  # busy; node 2 has answered as well, but late
        bus.deliver()
        assert bus.granted(held)
        assert bus.result(first) == "space_busy"
        taken, _ = bus.lock(2, b"x", EX, space="web")
        assert bus.result(taken) is None or bus.granted(taken)
        bus.call(3, "unlock", h=h)
        second = bus.call(1, "space_release", space="web")
        bus.sequence(3, 1, 2)
        bus.run()
        assert bus.result(second) == "space_busy"
        assert bus.granted(taken)
        bus.check_at_rest()

    def test_an_unlock_behind_a_new_space_of_the_same_name(self) -> None:
        """A request that was on its way when the space went must not stay in the one that takes its place."""
        bus = Bus()
        made(bus, "web", 2)
        lost, _ = bus.lock(2, b"x", EX, space="web")
        released = bus.call(1, "space_release", space="web", force=2)
        created = bus.call(1, "space_create", space="web")  # there already, as node 1 sees it
        bus.sequence(1)
        again = bus.call(1, "space_create", space="web", exclusive=True)
        bus.sequence(1)
        bus.run()
        assert bus.result(released) == {}
        assert bus.result(created)["name"] == "web"
        assert bus.result(again)["name"] == "web"
        assert bus.result(lost) == "no_space"
        fresh, _ = bus.lock(1, b"x", EX, space="web")
        bus.run()
        assert bus.granted(fresh)
        bus.check_at_rest()

    def test_orphans_are_locks(self) -> None:
        bus = Bus()
        made(bus, "web")
        rid, _ = bus.lock(1, b"x", EX, space="web", persistent=True)
        bus.run()
        assert bus.granted(rid)
        bus.close(1)
        assert done(bus, 1, "space_release", session=2, space="web", force=1) == "space_busy"
        assert done(bus, 2, "space_release", space="web") == "space_busy"
        assert done(bus, 1, "space_release", session=2, space="web", force=2) == {}
        assert not bus[1].service.home.orphans
        bus.check_at_rest()

    def test_it_waits_for_no_quorum(self) -> None:
        bus = Bus()
        made(bus, "web")
        bus.view([1])
        assert bus.result(bus.call(1, "space_release", space="web")) == "no_quorum"
        assert bus.result(bus.call(1, "space_create", space="new", no_quorum="fail")) == "no_quorum"


class TestViews:
    def test_a_joiner_gets_the_registry(self) -> None:
        bus = Bus()
        made(bus, "web", value_limit=77, permissions=0o600)
        bus.kill(3)
        bus.view([1, 2])
        made(bus, "db")
        bus.boot(3)
        bus.view([1, 2, 3])
        bus.run()
        assert [(s.name, s.value_limit, s.permissions) for s in bus[3].table.spaces] == [
            ("db", VALUE_LIMIT, PERMISSIONS), ("default", VALUE_LIMIT, 0o666), ("web", 77, 0o600),
        ]  # fmt: skip
        assert done(bus, 3, "space_open", space="web")["value_limit"] == 77
        bus.check_at_rest()

    def test_a_joiner_while_it_is_closing(self) -> None:
        bus = Bus(4, bootstrap=False)
        bus.view([1, 2, 3])
        bus.advance(LEASE + SECOND)
        made(bus, "web", 2)
        _, h = bus.lock(2, b"x", EX, space="web")
        bus.run()
        bus.call(2, "unlock", h=h)
        bus.run()
        rid = bus.call(1, "space_release", space="web")
        bus.sequence(1)
        bus.deliver()
        bus[2].queue.clear()
        bus.view([1, 2, 3, 4])
        bus.run()
        assert bus.result(rid) == {}
        bus.check_at_rest()

    def test_without_quorum_opening_waits_unless_it_is_known(self) -> None:
        bus = Bus()
        made(bus, "web")
        bus.view([1])
        assert bus.result(bus.call(1, "space_open", session=2, space="web"))["name"] == "web"
        waits = bus.call(1, "space_create", space="new")
        assert bus.result(waits) is None
        bus.view([1, 2, 3])
        bus.run()
        assert bus.result(waits)["name"] == "new"
        bus.check_at_rest()

    def test_an_answer_that_comes_in_a_view_that_is_not_primary_waits(self) -> None:
        """K9: it was ordered, but what it says may be dropped with this node's state."""
        bus = Bus()
        rid = bus.call(1, "space_create", space="new")
        bus.sequence(1)
        bus.deliver(2)
        bus.view([1, 2], primary=False)
        assert bus.result(rid) is None
        bus.view([1, 2, 3], primary=True)
        bus.run()
        assert bus.result(rid)["name"] == "new"

    def test_a_new_life_finds_its_open_spaces_again(self) -> None:
        bus = Bus()
        made(bus, "web", 2, 3)
        bus.view([1])
        waits, _ = bus.lock(1, b"x", EX, space="web")
        asked = bus.call(1, "space_create", space="new")
        exclusive = bus.call(1, "space_create", space="sole", exclusive=True)
        bus.view([2, 3])
        bus.advance(LEASE)
        bus.view([1, 2, 3])
        bus.advance(LEASE + SECOND)
        assert bus.granted(waits)
        assert bus.result(asked)["name"] == "new"
        assert bus.result(exclusive) == "lost"
        assert bus[1].service.home.sessions[1].spaces["web"] is bus[1].table.spaces.get("web")
        bus.check_at_rest()

    def test_what_is_lost_with_the_state_comes_back_as_it_was(self) -> None:
        """Nobody's state goes on: whoever has a lockspace open brings it back."""
        bus = Bus()
        made(bus, "web", value_limit=5, permissions=0o604)
        bus.kill(2)
        bus.kill(3)
        bus.view([1])
        for node in (2, 3):
            bus.boot(node)
            bus.marks[node] = bus.view([1])  # a primary view that nobody here has the state of
        bus.view([1, 2, 3])
        bus.advance(LEASE + SECOND)
        space = bus[3].table.spaces.get("web")
        assert space is not None
        assert (space.value_limit, space.permissions) == (5, 0o604)
        rid, _ = bus.lock(1, b"x", EX, space="web")
        bus.run()
        assert bus.granted(rid)
        bus.check_at_rest()

    def test_one_that_others_made_meanwhile_may_be_closed_to_us(self) -> None:
        bus = Bus()
        session = as_user(bus, 1, ANN)
        assert done(bus, 1, "space_create", session=session, space="web")["uid"] == ANN
        bus.view([1])
        waits, _ = bus.lock(1, b"x", EX, session=session, space="web")
        bus.view([2, 3])
        assert done(bus, 2, "space_release", space="web", force=2) == {}
        assert done(bus, 2, "space_create", session=as_user(bus, 2, BOB), space="web")["uid"] == BOB
        bus.advance(LEASE)
        bus.view([1, 2, 3])
        bus.advance(LEASE + SECOND)
        assert bus.result(waits) == "permission"
        assert "web" not in bus[1].service.home.sessions[session].spaces
        bus.check_at_rest()


@pytest.mark.parametrize("seed", range(30))
def test_replicas_agree_and_every_request_has_one_answer(seed: int) -> None:
    """Random requests about two spaces and a few names, with views: equal tables, no lock without a space."""
    rng = random.Random(seed)
    bus = Bus()
    asked: list[int] = []
    handles: list[tuple[int, int]] = []
    for _ in range(120):
        node = rng.choice([n.id for n in bus.alive()])
        name = rng.choice(["a", "b"])
        match rng.randrange(10):
            case 0 | 1:
                how = {"exclusive": rng.random() < 0.3}
                asked.append(bus.call(node, "space_create", space=name, **how))
            case 2:
                asked.append(bus.call(node, "space_release", space=name, force=rng.choice([0, 0, 1, 2])))
            case 3 | 4 | 5:
                rid, h = bus.lock(node, b"n%d" % rng.randrange(3), rng.choice([NL, PR, EX]), space=name)
                asked.append(rid)
                handles.append((node, h))
            case 9:
                rid, h = bus.lock_all(node, *rng.sample([b"n0", b"n1", b"n2"], 2), space=name)
                asked.append(rid)
                handles += [(node, h), (node, h + 1)]
            case 6 | 7 if handles:
                where, h = handles.pop(rng.randrange(len(handles)))
                bus.call(where, "unlock", h=h)
            case 8 if rng.random() < 0.2:
                away = rng.choice([0, 1, 2, 3])
                if away:
                    bus.view([away], rng=rng)
                    bus.view([n for n in (1, 2, 3) if n != away], rng=rng)
                else:
                    bus.view([1, 2, 3], rng=rng)
        if rng.random() < 0.5:
            some = rng.sample([1, 2, 3], rng.randint(1, 3))
            bus.sequence(*some)
            bus.deliver(*rng.sample([1, 2, 3], rng.randint(1, 3)), count=rng.randint(1, 4))
    bus.view([1, 2, 3], rng=rng)
    bus.advance(LEASE + SECOND)
    for node, h in handles:
        bus.call(node, "unlock", h=h)
    bus.advance(LEASE + SECOND)
    assert all(bus.result(rid) is not None for rid in asked)
    for member in bus.alive():
        spaces = member.table.spaces
        assert not spaces.closing
        assert all(space.release is None and not space.shut for space in spaces)
        for key in member.table.names:
            assert any(key.startswith(space.prefix) for space in spaces), key
            name = member.table.names[key]
            assert name.resource is None or not name.resource.locks
    bus.check_at_rest()


def test_a_request_looks_once_into_a_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hot path: nothing but the session's own dictionary tells whether the lockspace may be used."""
    bus = Bus()
    made(bus, "web")
    _, h = bus.lock(1, b"x", EX, space="web")
    bus.run()
    bus.call(1, "unlock", h=h)

    def never(*_: object) -> None:
        raise AssertionError("the registry was asked")

    service: DlmService = bus[1].service
    for method in ("get", "refuses"):
        monkeypatch.setattr(service.table.spaces, method, never, raising=True)
    monkeypatch.setattr(Space, "permits", never)
    before = bus.submitted
    rid, h = bus.lock(1, b"x", EX, space="web")
    assert bus.granted(rid)
    bus.call(1, "unlock", h=h)
    assert bus.submitted == before
    assert prefix_of("web") + b"x" in service.table.names
