"""What waits after a failure: fencing, recovery by an application, a delay; and who need not wait."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dlm.failures import EVERYWHERE, Failure, Failures, Freed
from dlm.lease import stretched
from dlm.messages import Kind
from dlm.modes import EX, NL, PR
from dlm.names import Form, Name
from dlm.options import DELAY, FENCING, RECOVERY, Options
from dlm.spaces import CREATE, Space, Spaces
from dlm.table import Life, Table
from tests.dlm.bus import CLIENT, LEASE, MS, Bus
from tests.dlm.told import Told, done, stable
from vsync.types import NO_RING, ClusterConfig, Member, QuorumConfig

SECOND = 1000 * MS
HORIZON = LEASE + 200 * MS


def spaces(**options: Options) -> Spaces:
    """``default`` and others with these options."""
    made = Spaces()
    for name, each in options.items():
        if name != "default":
            made.create(Space(name), CREATE)
        made.set_options(made.by_name[name], each)
    return made


def owned(node: int) -> Name:
    return Name(Form.PRIVATE, node, 5)


def begun(needs: Options, *lives: tuple[int, int], split: bool = False) -> Failures:
    """These lives have failed with a private name ``R`` each, at position 9."""
    failures = Failures()
    ended = [Life(node, incarnation, NO_RING) for node, incarnation in lives]
    failures.begin(spaces(default=needs), ended, 9, 100, split)
    ending = failures.ending()
    for node, _ in lives:
        failures.concern(b"\0R%d" % node, owned(node), ending)
    failures.invariants()
    return failures


class TestFailures:
    def test_one_for_each_life_and_lockspace_that_wants_something(self) -> None:
        failures = Failures()
        wanting = spaces(a=Options(fencing=True), b=Options(recovery=True, lock_delay_ms=1), c=Options(stable=True))
        failures.begin(wanting, [Life(3, 7, NO_RING), Life(2, 1, NO_RING)], 9, 100, split=False)
        names = [(each.name, each.needs) for each in failures.every]
        assert names == [
            (("a", 2, 1, 9), FENCING),
            (("b", 2, 1, 9), RECOVERY | DELAY),
            (("a", 3, 7, 9), FENCING),
            (("b", 3, 7, 9), RECOVERY | DELAY),
        ]
        assert failures.unfenced() == [], "no name is concerned yet"
        assert failures.rows(0) == []

    def test_names_that_it_had(self) -> None:
        failures = begun(Options(fencing=True), (3, 7))
        assert [each.node for each in failures.waiting(b"\0R3")] == [3]
        assert failures.concerns(b"\0R3")
        assert not failures.concerns(b"\0R2")
        assert failures.unfenced() == [Member(3, 7)]
        assert list(failures.lately) == [b"\0R3"]
        [row] = failures.rows(150)
        assert (row["names"], row["needs"], row["since_us"]) == (1, "fencing", 50)

    def test_after_the_purge_names_concern_nobody(self) -> None:
        """A clean end, later, of the same node."""
        failures = begun(Options(fencing=True), (3, 7))
        failures.concern(b"\0other", owned(3), failures.ending())
        assert not failures.concerns(b"\0other")

    def test_what_it_needs_comes_piece_by_piece(self) -> None:
        failures = begun(Options(False, 1, True, True), (3, 7))
        assert failures.clear(3, 7, "default", DELAY, "x") == Freed(3, 7, "default", DELAY, "x")
        assert failures.clear(3, 7, "default", DELAY, "x") is None
        assert failures.clear(3, 7, EVERYWHERE, FENCING, "y") is not None
        assert failures.unfenced() == []
        assert failures.concerns(b"\0R3")
        assert failures.clear(3, 7, "other", RECOVERY, "z") is None
        assert failures.clear(3, 7, "default", RECOVERY, "z", 8) is None, "of an earlier one"
        assert failures.clear(3, 7, "default", RECOVERY, "z", 9) is not None
        assert not failures
        assert not failures.concerns(b"\0R3")
        failures.invariants()

    def test_who_is_fenced_now_was_so_before(self) -> None:
        failures = begun(Options(fencing=True), (3, 7))
        assert failures.clear(3, 6, EVERYWHERE, FENCING, "") is None
        assert failures.clear(3, 8, EVERYWHERE, FENCING, "") is not None

    def test_who_is_back_need_not_be_fenced_but_has_to_be_recovered_from(self) -> None:
        failures = begun(Options(fencing=True, recovery=True), (3, 7), (2, 1))
        assert failures.returned(3, 9) is not None
        assert failures.unfenced() == [Member(2, 1)]
        assert failures.concerns(b"\0R3")

    def test_options_that_are_not_wanted_any_more(self) -> None:
        failures = begun(Options(fencing=True, recovery=True), (3, 7))
        assert failures.relax("default", FENCING | RECOVERY) is None
        assert failures.relax("default", RECOVERY) is not None
        assert [each.needs for each in failures.every] == [RECOVERY]
        failures.forget("default")
        assert not failures

    def test_tries_go_with_what_they_were_for(self) -> None:
        failures = begun(Options(fencing=True), (3, 7), (2, 1))
        failures.tries = {Member(3, 7): (1,), Member(2, 1): (1,)}
        failures.clear(3, 7, EVERYWHERE, FENCING, "")
        assert list(failures.tries) == [Member(2, 1)]

    def test_everything_is_concerned_if_others_may_act(self) -> None:
        failures = begun(Options(), (3, 7), split=True)
        assert failures.concerns(b"\0whatever")
        assert failures.unfenced() == [Member(3, 7)]
        assert failures.rows(0)[0]["names"] is None
        failures.relax("default", 0)
        assert failures.concerns(b"\0whatever")
        failures.returned(3, 8)
        assert not failures.concerns(b"\0whatever")

    def test_two_failures_of_one_name(self) -> None:
        """Both had PR; both are needed."""
        failures = Failures()
        table = Table(1)
        ended = [Life(2, 1, NO_RING), Life(3, 1, NO_RING)]
        failures.begin(spaces(default=Options(fencing=True)), ended, 9, 0, split=False)
        table.names[b"\0R"] = name = Name(Form.SHARED, 0, 1)
        name.resource = _with_locks(table, {2: PR, 3: PR, 1: PR})
        failures.concern(b"\0R", name, failures.ending())
        assert len(failures.waiting(b"\0R")) == 2
        failures.clear(2, 1, EVERYWHERE, FENCING, "")
        assert failures.concerns(b"\0R")
        failures.clear(3, 1, EVERYWHERE, FENCING, "")
        assert not failures.concerns(b"\0R")
        failures.invariants()

    @pytest.mark.parametrize(("mode", "had"), [(NL, False), (PR, True), (EX, True)])
    def test_nl_is_nothing_to_have(self, mode: int, had: bool) -> None:
        failures = Failures()
        failures.begin(spaces(default=Options(fencing=True)), [Life(3, 1, NO_RING)], 9, 0, split=False)
        name = Name(Form.SHARED, 0, 1)
        name.resource = _with_locks(Table(1), {3: mode})
        failures.concern(b"\0R", name, failures.ending())
        assert failures.concerns(b"\0R") is had

    def test_it_survives_a_snapshot(self) -> None:
        failures = begun(Options(fencing=True, recovery=True), (3, 7), (2, 1), split=True)
        failures.tries = {Member(3, 7): (1, 2, None, "x", True, 0)}
        copy = Failures.decode(failures.encode(), 500)
        assert copy.encode() == failures.encode()
        assert copy.mark() == failures.mark()
        assert copy.waiting(b"\0R3")[0].since == 500, "its own clock"
        assert not copy.lately
        copy.invariants()


def _with_locks(table: Table, modes: dict[int, int]) -> Any:
    from dlm.resource import Lock, Resource

    resource = Resource(table.mint)
    for node, mode in modes.items():
        resource.lock(Lock((node, 1, node), mode, 0, None, 1, "x", 0), [])
    return resource


# -- over the bus --------------------------------------------------------------------------------------------


def failed(bus: Bus, *names: bytes) -> dict[bytes, int]:
    """Node 3 holds these and fails; node 2 asks for them, and for ``free``. Its requests."""
    for name in names:
        rid, _ = bus.lock(3, name)
        bus.run()
        assert bus.granted(rid)
    bus.kill(3)
    bus.view([1, 2])
    asked = {name: bus.lock(2, name)[0] for name in (*names, b"free")}
    bus.run()
    return asked


def granted(bus: Bus, asked: dict[bytes, int]) -> set[bytes]:
    return {name for name, rid in asked.items() if bus.granted(rid)}


def clear(bus: Bus, bits: int, node: int = 3, incarnation: int = 1, space: str = EVERYWHERE) -> None:
    """Node 1 says so."""
    bus[1].service.home.send(Kind.CLEARED, (node, incarnation, space, bits, "test"))
    bus.run()


class TestFencing:
    def test_grants_of_what_it_had_wait(self) -> None:
        bus = stable(fencing=True)
        asked = failed(bus, b"A", b"B")
        bus.advance(10 * LEASE)
        assert granted(bus, asked) == {b"free"}
        assert bus[1].service.table.failures.unfenced() == [Member(3, 1)]
        assert bus[2].service.table.names[b"\0A"].resource is not None, "decided all the same"
        clear(bus, FENCING)
        assert granted(bus, asked) == {b"A", b"B", b"free"}
        bus.check_at_rest()

    def test_the_horizon_counts_as_well(self) -> None:
        bus = stable(fencing=True)
        asked = failed(bus, b"A")
        clear(bus, FENCING)
        assert granted(bus, asked) == {b"free"}
        bus.advance(HORIZON)
        assert granted(bus, asked) == {b"A", b"free"}

    def test_fencing_settles_although_nobody_said_so(self) -> None:
        """A grant that only the failed node had heard of could not wait for its fencing."""
        bus = Told({0: {"default": {"fencing": True}}})
        rid, _ = bus.lock(3, b"A")
        bus.sequence()
        bus.deliver(3)
        assert not bus.granted(rid)

    def test_who_comes_later_waits_too(self) -> None:
        bus = stable(fencing=True)
        failed(bus, b"A")
        bus.advance(HORIZON)
        bus.close(2)
        bus.run()
        late, _ = bus.lock(1, b"A")
        bus.run()
        assert not bus.granted(late)
        clear(bus, FENCING)
        assert bus.granted(late)

    def test_a_try_is_not_refused(self) -> None:
        """It is granted, only later: whoever cannot wait gives up."""
        bus = stable(fencing=True)
        failed(bus)
        rid, _ = bus.lock(1, b"A", timeout_us=SECOND)
        bus.run()
        assert bus.granted(rid)

    def test_a_time_out_leaves_nothing_behind(self) -> None:
        bus = stable(fencing=True)
        asked = failed(bus, b"A")
        bus.close(2)
        bus.advance(HORIZON)
        rid, _ = bus.lock(1, b"A", timeout_us=SECOND)
        bus.advance(2 * SECOND)
        assert bus.result(rid) == "timeout"
        assert len(bus[1].service.home.teller.backlog) == 0
        clear(bus, FENCING)
        assert not bus.granted(asked[b"A"])
        assert done(bus, 1, "show", name=b"A") == "unknown"

    def test_more_than_one_name(self) -> None:
        bus = stable(fencing=True)
        failed(bus, b"A")
        bus.close(2)
        rid, _ = bus.lock_all(1, b"A", b"C")
        bus.advance(HORIZON)
        assert not bus.granted(rid)
        clear(bus, FENCING)
        assert bus.granted(rid)

    def test_holders_go_on(self) -> None:
        """Who had PR beside the failed node keeps it, and may give it up; more than that waits."""
        bus = stable(fencing=True)
        _, h = bus.lock(1, b"A", PR)
        bus.run()
        failed(bus, b"B")  # makes no difference to A ..
        bus.boot(3)
        bus.view([1, 2, 3])
        bus.advance(HORIZON)
        rid, _ = bus.lock(3, b"A", PR)
        bus.run()
        assert bus.granted(rid)
        bus.kill(3)
        bus.view([1, 2])
        bus.advance(HORIZON)
        up = bus.call(1, "convert", h=h, mode=EX)
        bus.run()
        assert not bus.granted(up), ".. but now it is concerned"
        clear(bus, FENCING, incarnation=2)
        assert bus.granted(up)
        assert done(bus, 1, "unlock", h=h) == {}

    def test_the_node_comes_back(self) -> None:
        bus = stable(fencing=True)
        asked = failed(bus, b"A")
        bus.advance(HORIZON)
        bus.boot(3)
        bus.view([1, 2, 3])
        bus.run()
        assert granted(bus, asked) == {b"A", b"free"}
        assert not bus[1].service.table.failures
        bus.check_at_rest()

    def test_it_was_only_cut_off_and_comes_back(self) -> None:
        """The same process: its locks are lost, and it knows."""
        bus = stable(fencing=True)
        bus.lock(3, b"A")
        bus.run()
        bus.view([3])
        bus.view([1, 2])
        rid, _ = bus.lock(1, b"A")
        bus.advance(HORIZON)
        assert not bus.granted(rid)
        bus.view([1, 2, 3])
        bus.run()
        assert bus.granted(rid)

    def test_a_joiner_knows(self) -> None:
        bus = stable(nodes=5, fencing=True)
        for node in (4, 5):
            bus.lock(node, b"%d" % node)
            bus.run()
        bus.kill(5)
        bus.view([1, 2, 3, 4])
        bus.kill(4)
        bus.view([1, 2, 3])
        bus.boot(4)
        bus.view([1, 2, 3, 4])
        bus.advance(HORIZON)
        assert [each.node for each in bus[4].service.table.failures.every] == [5]
        rid, _ = bus.lock(4, b"5")
        bus.run()
        assert not bus.granted(rid)
        clear(bus, FENCING, node=5)
        assert bus.granted(rid)
        bus.check_at_rest()

    def test_a_view_without_quorum_changes_nothing(self) -> None:
        bus = stable(fencing=True)
        asked = failed(bus, b"A")
        bus.view([1])
        bus.view([2])
        bus.view([1, 2])
        bus.advance(HORIZON)
        assert granted(bus, asked) == {b"free"}
        clear(bus, FENCING)
        assert granted(bus, asked) == {b"A", b"free"}

    def test_what_is_in_another_lockspace(self) -> None:
        bus = Told({0: {"web": {"fencing": True}}})
        for node in (2, 3):
            done(bus, node, "space_create", space="web")
        bus.lock(3, b"A")
        bus.lock(3, b"A", space="web")
        bus.run()
        bus.kill(3)
        bus.view([1, 2])
        plain, _ = bus.lock(2, b"A")
        web, _ = bus.lock(2, b"A", space="web")
        bus.advance(HORIZON)
        assert bus.granted(plain)
        assert not bus.granted(web)
        assert done(bus, 2, "space_set", space="web", fencing=False)["fencing"] is False
        assert bus.granted(web)

    def test_released_with_the_lockspace(self) -> None:
        bus = Told({0: {"web": {"fencing": True}}})
        for node in (1, 3):
            done(bus, node, "space_create", space="web")
        bus.lock(3, b"A", space="web")
        bus.run()
        bus.kill(3)
        bus.view([1, 2])
        bus.run()
        assert done(bus, 1, "space_release", space="web", force=2) == {}
        assert not bus[2].service.table.failures
        bus.check_at_rest()


class TestNobodyWaits:
    """Clean leavers, crashed clients: no failure, no horizon."""

    @pytest.mark.parametrize("options", [{}, {"fencing": True}, {"recovery": True, "lock_delay_ms": 60_000}])
    def test_for_a_clean_leaver(self, options: dict[str, Any]) -> None:
        bus = stable(**options)
        bus.lock(3, b"A")
        bus.run()
        rid, _ = bus.lock(1, b"A")
        bus.run()
        bus[3].service.leaving(bus.now)
        bus.tokens()
        bus.run()
        bus.kill(3)
        bus.view([1, 2])
        bus.run()
        assert bus.granted(rid)
        assert not bus[1].service.table.failures
        assert len(bus[1].service.home.teller.backlog) == 0

    @pytest.mark.parametrize("options", [{}, {"fencing": True}, {"recovery": True, "lock_delay_ms": 60_000}])
    def test_for_a_crashed_client(self, options: dict[str, Any]) -> None:
        bus = stable(**options)
        bus.lock(3, b"A")
        bus.run()
        rid, _ = bus.lock(1, b"A")
        bus.run()
        bus.close(3)
        bus.run()
        assert bus.granted(rid)
        assert not bus[1].service.table.failures

    def test_for_a_node_that_had_nothing(self) -> None:
        """Nothing to be fenced for, and nothing stays in the table."""
        bus = stable(fencing=True, recovery=True)
        bus.lock(3, b"A", NL)
        bus.lock(1, b"A", NL)
        bus.run()
        bus.kill(3)
        bus.view([1, 2])
        assert bus[1].service.table.failures.unfenced() == []
        rid, _ = bus.lock(1, b"A")
        bus.run()
        assert bus.granted(rid)
        assert not bus[1].service.table.failures
        assert not bus[2].service.table.failures
        bus.check_at_rest()


class TestDelay:
    DELAY_MS = 10_000

    def test_so_long(self) -> None:
        bus = stable(lock_delay_ms=self.DELAY_MS)
        asked = failed(bus, b"A")
        bus.advance(self.DELAY_MS * MS - 100 * MS)
        assert granted(bus, asked) == {b"free"}
        bus.advance(stretched(self.DELAY_MS * MS) - self.DELAY_MS * MS + 300 * MS)
        assert granted(bus, asked) == {b"A", b"free"}
        assert not bus[1].service.table.failures
        bus.check_at_rest()

    def test_the_lowest_member_counts_and_says_it_once(self) -> None:
        bus = stable(lock_delay_ms=self.DELAY_MS)
        failed(bus, b"A")
        bus.now += stretched(self.DELAY_MS * MS)
        assert bus[2].service.home.clearing.next_deadline() is None
        assert bus[1].service.home.clearing.next_deadline() <= bus.now
        for _ in range(3):
            bus[1].service.fire(bus.now)
            bus[2].service.fire(bus.now)
        assert bus.kinds(1) == [Kind.CLEARED]
        assert bus.kinds(2) == []

    def test_what_concerns_no_name_is_cleared_at_once_and_its_delay_is_not_waited_for(self) -> None:
        """Its timer would come again and again until the message is delivered (seed 28: a node that spins)."""
        bus = stable(lock_delay_ms=self.DELAY_MS, fencing=True)
        bus.kill(3)
        bus.view([1, 2])
        assert bus[1].service.table.failures
        bus.now += stretched(self.DELAY_MS * MS)
        for _ in range(3):
            bus[1].service.fire(bus.now)
        assert bus.kinds(1) == [Kind.CLEARED]
        assert bus[1].service.home.clearing.next_deadline() is None
        bus.run()
        assert not bus[1].service.table.failures

    def test_the_next_one_counts_from_when_it_learnt_of_it(self) -> None:
        bus = stable(nodes=5, lock_delay_ms=self.DELAY_MS)
        bus.lock(5, b"A")
        bus.run()
        bus.kill(5)
        bus.view([1, 2, 3, 4])
        rid, _ = bus.lock(3, b"A")
        bus.advance(self.DELAY_MS * MS - SECOND)
        bus.kill(1)
        bus.view([2, 3, 4])
        bus.advance(SECOND // 2)
        assert not bus.granted(rid)
        bus.advance(SECOND)
        assert bus.granted(rid)

    def test_a_shorter_one_from_now_on(self) -> None:
        bus = stable(lock_delay_ms=self.DELAY_MS)
        asked = failed(bus, b"A")
        bus.advance(HORIZON)
        done(bus, 1, "space_set", space="default", lock_delay_ms=0)
        assert granted(bus, asked) == {b"A", b"free"}


class TestRecovery:
    def test_the_application_says_when(self) -> None:
        bus = stable(recovery=True)
        asked = failed(bus, b"A", b"B")
        bus.advance(HORIZON)
        [row] = bus.result(bus.call(1, "recoveries"))
        assert (row["space"], row["node"], row["incarnation"], row["names"]) == ("default", 3, 1, 2)
        assert row["ready"]
        assert done(bus, 2, "recovered", space="default", node=3) == {}
        assert granted(bus, asked) == {b"A", b"B", b"free"}
        assert bus.result(bus.call(1, "recoveries")) == []
        assert done(bus, 1, "recovered", space="default", node=3) == "no_failure"

    def test_it_is_answered_when_all_know(self) -> None:
        bus = stable(recovery=True)
        failed(bus, b"A")
        bus.advance(HORIZON)
        rid = bus.call(2, "recovered", space="default", node=3)
        bus.sequence()
        bus.deliver(1)
        assert bus.result(rid) is None
        bus.run()
        assert bus.result(rid) == {}

    def test_who_listens_is_told_once(self) -> None:
        bus = stable(recovery=True)
        assert done(bus, 1, "recover_watch", space="default") == {}
        failed(bus, b"A")
        assert not self.told(bus, 1)
        bus.advance(HORIZON)
        assert self.told(bus, 1) == [3]
        assert done(bus, 1, "recover_watch", 2, space="default") == {}
        bus.advance(SECOND)
        assert self.told(bus, 1) == [3]
        assert self.told(bus, 1, session=2) == [3]
        assert not self.told(bus, 2)

    @staticmethod
    def told(bus: Bus, node: int, session: int = 1) -> list[int]:
        return [data["node"] for to, kind, data in bus[node].pushes if (to, kind) == (session, "recover")]

    def test_not_before_it_is_fenced(self) -> None:
        bus = stable(recovery=True, fencing=True)
        done(bus, 1, "recover_watch", space="default")
        asked = failed(bus, b"A")
        bus.advance(HORIZON)
        assert done(bus, 1, "recovered", space="default", node=3) == "early"
        assert not self.told(bus, 1)
        clear(bus, FENCING)
        assert self.told(bus, 1) == [3]
        assert done(bus, 1, "recovered", space="default", node=3) == {}
        assert granted(bus, asked) == {b"A", b"free"}

    def test_nor_while_it_may_have_leases(self) -> None:
        bus = stable(recovery=True)
        failed(bus, b"A")
        assert done(bus, 1, "recovered", space="default", node=3) == "early"

    def test_the_node_itself_may_recover_but_its_return_is_not_enough(self) -> None:
        bus = stable(recovery=True)
        asked = failed(bus, b"A")
        bus.boot(3)
        bus.view([1, 2, 3])
        bus.advance(HORIZON)
        assert granted(bus, asked) == {b"free"}
        assert done(bus, 3, "recovered", space="default", node=3) == {}
        assert granted(bus, asked) == {b"A", b"free"}

    def test_of_the_failure_that_was_meant(self) -> None:
        """Node 3 fails again while an application recovers from its first failure."""
        bus = stable(recovery=True)
        failed(bus, b"A")
        bus.advance(HORIZON)
        [first] = bus.result(bus.call(1, "recoveries"))
        bus.boot(3)
        bus.view([1, 2, 3])
        bus.advance(HORIZON)
        bus.lock(3, b"B")
        bus.run()
        bus.kill(3)
        bus.view([1, 2])
        bus.advance(HORIZON)
        assert done(bus, 1, "recovered", space="default", node=3, position=first["position"]) == {}
        assert [row["names"] for row in bus.result(bus.call(1, "recoveries"))] == [1]
        assert done(bus, 1, "recovered", space="default", node=3) == {}
        assert not bus[1].service.table.failures

    def test_without_quorum(self) -> None:
        bus = stable(recovery=True)
        failed(bus, b"A")
        bus.advance(HORIZON)
        bus.view([1])
        assert done(bus, 1, "recovered", space="default", node=3) == "no_quorum"

    def test_whether_it_was_heard_before_the_life_ended(self) -> None:
        bus = stable(nodes=5, recovery=True)
        bus.lock(5, b"A")
        bus.run()
        bus.kill(5)
        bus.view([1, 2, 3, 4])
        bus.advance(HORIZON)
        rid = bus.call(4, "recovered", space="default", node=5)
        bus.view([4])
        bus.view([1, 2, 3])
        bus.view([1, 2, 3, 4])
        bus.run()
        assert bus.result(rid) == "lost"
        bus.advance(HORIZON)
        assert done(bus, 4, "recovered", space="default", node=5) == {}

    def test_a_client_that_has_gone_is_not_answered(self) -> None:
        bus = stable(recovery=True)
        failed(bus, b"A")
        bus.advance(HORIZON)
        done(bus, 1, "recover_watch", space="default")
        rid = bus.call(1, "recovered", space="default", node=3)
        bus.close(1)
        bus.run()
        assert bus.result(rid) is None
        assert not bus[1].service.table.failures

    def test_permissions_are_those_of_the_lockspace(self) -> None:
        bus = Bus()
        done(bus, 1, "space_create", space="web", permissions=0o600, recovery=True)
        bus[2].service.open(9, replace(CLIENT, uid=77), bus.now)
        for verb in ("recovered", "recoveries", "recover_watch"):
            assert done(bus, 2, verb, 9, space="web", node=3) == "permission"


class TwoNodes(Bus):
    """Both halves of a cluster may act, and each fences the other first."""

    def config(self, node: int) -> ClusterConfig:
        return replace(super().config(node), quorum=self.quorum)

    def __init__(self, unsafe: bool = False, policy: str = "two_node") -> None:
        self.quorum = QuorumConfig(policy, unsafe=unsafe)
        super().__init__(2)


class TestSplit:
    def test_all_names_wait_at_both_sides(self) -> None:
        bus = TwoNodes()
        bus.view([1], primary=True)
        bus.view([2], primary=True)
        for node in (1, 2):
            failures = bus[node].service.table.failures
            assert failures.unfenced() == [Member(3 - node, 1)]
            assert failures.concerns(b"\0anything")
        clear(bus, FENCING, node=2)
        assert not bus[1].service.table.failures.concerns(b"\0anything")
        assert bus[2].service.table.failures.concerns(b"\0anything")

    def test_nobody_waits_who_is_unsafe(self) -> None:
        bus = TwoNodes(unsafe=True)
        bus.view([1], primary=True)
        assert not bus[1].service.table.failures

    def test_who_was_never_seen_counts_as_failed(self) -> None:
        bus = TwoNodes(policy="none")
        for node in (1, 2):
            bus.kill(node)
        bus.boot(1)
        bus.view([1], primary=True)
        assert bus[1].service.table.failures.unfenced() == [Member(2, 0)]
        bus.boot(2)
        bus.view([1, 2], primary=True)
        bus.run()
        assert not bus[1].service.table.failures
        bus.check_at_rest()

    def test_the_announcement_of_others_is_as_it_was(self) -> None:
        assert Bus()[1].service.table.failures.every == []


def test_the_rows_of_all_nodes_are_alike() -> None:
    bus = stable(fencing=True, recovery=True)
    failed(bus, b"A")
    rows = [bus.result(bus.call(node, "failures")) for node in (1, 2)]
    assert rows[0] == rows[1]
    assert rows[0][0]["needs"] == "fencing, recovery"


def test_a_failure_is_its_own() -> None:
    one = Failure("default", 3, 7, 9, FENCING, 0)
    assert one.member == Member(3, 7)
    assert not one.matters
    assert Failure(EVERYWHERE, 3, 7, 9, FENCING, 0).matters
