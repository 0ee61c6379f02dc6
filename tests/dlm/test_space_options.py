"""The options of lockspaces in the registry: where they come from, who changes them, that all have the same."""

from __future__ import annotations

from dlm.options import PLAIN, Options
from dlm.spaces import CREATE, Space, Spaces
from dlm.table import Table
from tests.dlm.bus import Bus
from tests.dlm.told import Told, done
from vsync.service import Credentials

ANN, BOB = 1001, 1002


def user(bus: Bus, node: int, uid: int) -> int:
    """A session of that user; its number."""
    bus[node].service.open(1000 + uid, Credentials(7, uid, uid, "someone"), bus.now)
    return 1000 + uid


def options(bus: Bus, space: str = "default") -> Options:
    """What all nodes think."""
    found = {node.table.spaces.by_name[space].options for node in bus.alive()}
    assert len(found) == 1, found
    return found.pop()


class TestRegistry:
    def test_by_name(self) -> None:
        spaces = Spaces()
        assert spaces.options(b"\0x") == PLAIN
        assert spaces.create(Space("a", options=Options(True)), CREATE) == ""
        assert spaces.options(b"a\0x") == Options(True)
        assert spaces.options(b"\0x") == spaces.options(b"aa\0x") == PLAIN
        spaces.set_options(spaces.by_name["default"], Options(fencing=True))
        assert spaces.options(b"\0x") == Options(fencing=True)
        spaces.set_options(spaces.by_name["default"], PLAIN)
        assert spaces.options(b"\0x") == PLAIN
        spaces.remove(spaces.by_name["a"])
        assert spaces.options(b"a\0x") == PLAIN

    def test_two_tables_do_not_share_the_default_lockspace(self) -> None:
        one, other = Spaces(), Spaces()
        one.set_options(one.by_name["default"], Options(True))
        assert other.by_name["default"].options == PLAIN

    def test_it_survives_a_snapshot(self) -> None:
        table = Table(1)
        table.spaces.set_options(table.spaces.by_name["default"], Options(True, 5))
        table.spaces.create(Space("b", options=Options(recovery=True)), CREATE)
        copy = Table.decode(2, table.encode(), 0)
        assert copy.encode() == table.encode() != Table(1).encode()
        assert copy.spaces.options(b"\0x") == Options(True, 5)
        assert copy.spaces.options(b"b\0x") == Options(recovery=True)


class TestWhereTheyComeFrom:
    def test_default_is_as_the_lowest_member_says(self) -> None:
        bus = Told({1: {"default": {"answer": "stable"}}, 0: {"default": {"fencing": True}}})
        assert options(bus) == Options(stable=True)
        bus.check_at_rest()

    def test_a_table_that_goes_on_keeps_them(self) -> None:
        bus = Told({1: {"default": {"answer": "stable"}}})
        bus.view([2, 3])
        bus.said[1] = {"default": {"lock_delay_ms": 7}}
        bus.boot(1)
        bus.view([1, 2, 3])
        bus.run()
        assert options(bus) == Options(stable=True)

    def test_one_that_begins_empty_has_new_ones(self) -> None:
        bus = Told({1: {"default": {"answer": "stable"}}})
        for node in (1, 2, 3):
            bus.kill(node)
        for node in (2, 3):
            bus.boot(node)
        bus.view([2, 3])
        assert options(bus) == PLAIN

    def test_a_new_lockspace_is_as_the_request_says_and_else_the_node_that_makes_it(self) -> None:
        bus = Told({2: {"web": {"answer": "stable", "lock_delay_ms": 7}}})
        assert done(bus, 2, "space_create", space="web", lock_delay_ms=9)["answer"] == "stable"
        assert options(bus, "web") == Options(True, 9)
        assert done(bus, 1, "space_create", space="db")["answer"] == "delivery"
        assert options(bus, "db") == PLAIN

    def test_what_is_lost_with_the_state_comes_back_as_it_was(self) -> None:
        bus = Bus()
        done(bus, 1, "space_create", space="web", recovery=True)
        bus.kill(2)
        bus.kill(3)
        bus.boot(2)
        bus.boot(3)
        bus.marks.clear()
        bus.view([1], primary=False)
        bus[1].service._drop_state("for the test")
        bus.view([1, 2, 3])
        bus.run()
        assert options(bus, "web") == Options(recovery=True)


class TestChanging:
    def test_what_is_not_said_stays(self) -> None:
        bus = Bus()
        done(bus, 1, "space_create", space="web", lock_delay_ms=5)
        row = done(bus, 2, "space_set", space="web", answer="stable")
        assert (row["name"], row["answer"], row["lock_delay_ms"]) == ("web", "stable", 5)
        assert options(bus, "web") == Options(True, 5)
        assert done(bus, 3, "space_set", space="web", answer="delivery", lock_delay_ms=0)["answer"] == "delivery"
        assert options(bus, "web") == PLAIN
        bus.check_at_rest()

    def test_it_takes_its_place_in_the_order(self) -> None:
        bus = Bus()
        rid = bus.call(1, "space_set", space="default", fencing=True)
        bus.sequence()
        bus.deliver(2)
        assert bus[2].table.spaces.options(b"\0x").fencing
        assert not bus[1].table.spaces.options(b"\0x").fencing
        assert bus.result(rid) is None
        bus.run()
        assert bus.result(rid)["fencing"]

    def test_who_may(self) -> None:
        bus = Told({})
        ann = user(bus, 1, ANN)
        done(bus, 1, "space_create", ann, space="web")
        assert done(bus, 1, "space_set", ann, space="web", answer="stable")["answer"] == "stable"
        assert done(bus, 1, "space_set", user(bus, 1, BOB), space="web", answer="delivery") == "permission"
        assert done(bus, 1, "space_set", ann, space="default", answer="stable") == "permission"
        assert done(bus, 1, "space_set", user(bus, 1, 4), space="default", answer="stable")["answer"] == "stable"
        assert done(bus, 1, "space_set", space="default", answer="delivery")["answer"] == "delivery"

    def test_errors(self) -> None:
        bus = Bus()
        assert done(bus, 1, "space_set", space="web", answer="stable") == "no_space"
        assert done(bus, 1, "space_set", space="default", answer="soon") == "invalid"
        bus.view([1])
        assert done(bus, 1, "space_set", space="default", answer="stable") == "no_quorum"

    def test_whether_it_was_done_before_the_life_ended_is_not_known(self) -> None:
        bus = Bus()
        rid = bus.call(3, "space_set", space="default", answer="stable")
        bus.view([3])
        bus.view([1, 2])
        bus.view([1, 2, 3])
        bus.run()
        assert bus.result(rid) == "lost"
        assert options(bus) == PLAIN
