"""Time-outs of requests: one cancel in the order, by the clock of the request's own node (R6, S69)."""

from __future__ import annotations

import random
from typing import Any

import pytest

from dlm.handle import Handle, Request
from dlm.lock import State, What
from dlm.messages import Kind, decode
from dlm.modes import DEMOTED, EX, NL, PR, PW, TIMEOUT
from dlm.resource import Effect, Lock, Resource
from dlm.timers import LOOKED_AT, MET, SLACK, Timers
from dlm.work import ITEM
from tests.dlm.bus import LEASE, MS, Bus

SECOND = 1000 * MS
MANY = 1 << 20


def request(deadline: int) -> Handle:
    return Handle(1, 1, b"k", Request(Kind.LOCK, 1, EX, 0, None, deadline=deadline))


class TestTimers:
    def test_in_the_order_of_their_times_and_each_once(self) -> None:
        timers = Timers()
        handles = [request(deadline) for deadline in (30, 10, 20, 10, 0)]
        for handle in handles:
            timers.add(handle)
        assert timers.next_deadline() == 10
        assert timers.due(9, MANY) == []
        assert timers.due(20, MANY) == [handles[1], handles[3], handles[2]]
        assert timers.due(20, MANY) == []
        assert timers.next_deadline() == 30

    def test_an_answered_request_and_one_that_is_released_have_none(self) -> None:
        timers = Timers()
        answered, released, again = request(10), request(11), request(12)
        for handle in (answered, released, again):
            timers.add(handle)
        answered.request = None
        released.ending = True
        again.request = Request(Kind.CONVERT, 2, PR, 0, None)  # another operation of the same lock
        assert timers.next_deadline() is None
        assert timers.due(1000, MANY) == []

    def test_answered_requests_with_long_time_outs_do_not_pile_up(self) -> None:
        timers = Timers()
        waiting = [request(3600 * SECOND) for _ in range(10)]
        for handle in waiting:
            timers.add(handle)
        for _ in range(20 * SLACK):
            handle = request(3600 * SECOND)
            timers.add(handle)
            handle.request = None
        assert len(timers) <= 2 * len(waiting) + SLACK + 1
        assert timers.due(3600 * SECOND, MANY) == waiting


    def test_what_has_piled_up_is_cleaned_a_few_at_a_time(self) -> None:
        """A clean-up looks at some entries with each new one, and changes nothing else."""
        timers, rng = Timers(), random.Random(3)
        handles: list[Handle] = []
        for number in range(5000):
            handles.append(request(rng.randrange(1, 1000)))
            before, waiting = len(timers), rng.randrange(len(handles))
            timers.add(handles[-1])
            assert before + 1 - LOOKED_AT <= len(timers) <= before + 1
            if number % 4:
                handles.pop(waiting).request = None
            assert len(timers) <= 2 * len(handles) + SLACK + number // LOOKED_AT
        found = timers.due(1000, MANY)
        times = [handle.request.deadline for handle in found if handle.request is not None]
        assert times == sorted(times)
        assert len(found) == len(handles)
        assert set(found) == set(handles)
        assert len(timers) == 0

    def test_many_that_were_answered_are_met_a_few_at_a_time(self) -> None:
        timers = Timers()
        handles = [request(deadline) for deadline in range(1, 10 * MET + 1)]
        for handle in handles:
            timers.add(handle)
        for handle in handles[:-1]:
            handle.request = None
        calls = 1
        while (deadline := timers.next_deadline()) != 10 * MET:
            assert deadline == calls * MET + 1
            calls += 1
        assert calls == 10
        assert timers.due(10 * MET, MANY) == handles[-1:]

    def test_so_many_give_up_in_a_turn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dlm.work.TURN", 10 * ITEM)
        bus = Bus()
        bus.lock(1, b"R", EX)
        bus.run()
        rids = [bus.lock(2, b"R", EX, timeout_us=SECOND)[0] for _ in range(95)]
        bus.run()
        bus.now += SECOND
        service, turns = bus[2].service, 0
        while (due := service.next_deadline()) is not None and due <= bus.now:
            before = len(bus[2].queue)
            service.fire(bus.now)
            assert len(bus[2].queue) - before <= 10
            turns += 1
        assert turns >= 10
        bus.run()
        assert {bus.result(rid) for rid in rids} == {"timeout"}
        bus.check_at_rest()


class TestResource:
    """A time-out is a cancel that says why (U1–U3)."""

    def resource(self, *asked: int) -> Resource:
        resource = Resource(iter(range(1, 100)).__next__)
        for number, mode in enumerate(asked, 1):
            resource.lock(Lock((1, 1, number), mode), [])
        return resource

    def test_u1_a_waiting_lock_goes(self) -> None:
        resource = self.resource(PR, EX, PR)
        out: list[Effect] = []
        assert resource.cancel((1, 1, 2), out, TIMEOUT)
        assert [(e.what, e.key[2], e.code) for e in out] == [(What.CANCELED, 2, "timeout"), (What.GRANTED, 3, "")]

    def test_u2_a_conversion_keeps_its_old_mode(self) -> None:
        resource = self.resource(PR, PR)
        resource.convert((1, 1, 1), EX, 0, None, 0, [])
        out: list[Effect] = []
        assert resource.cancel((1, 1, 1), out, TIMEOUT)
        assert [(e.what, e.code, e.mode) for e in out] == [(What.CANCELED, "timeout", PR)]
        assert resource.locks[1, 1, 1].state is State.GRANTED

    def test_u3_a_granted_lock_stays(self) -> None:
        resource = self.resource(EX)
        out: list[Effect] = []
        assert not resource.cancel((1, 1, 1), out, TIMEOUT)
        assert out == []
        assert resource.locks[1, 1, 1].mode == EX


def taken(bus: Bus, mode: int = EX) -> int:
    """Node 2 holds the name, shared; its handle."""
    rid, h = bus.lock(2, mode=mode)
    bus.run()
    assert bus.granted(rid)
    _, mine = bus.lock(3, mode=NL)  # a stranger: the name is shared from here on
    bus.run()
    bus.call(3, "unlock", h=mine)
    bus.run()
    return h


def timers(bus: Bus, micros: int) -> None:
    """Time passes for the timers alone: nothing is sequenced or delivered."""
    bus.now += micros
    for node in bus.alive():
        node.host.lease_basis = node.host.last_token = bus.now
        node.service.token(bus.now)
        node.service.fire(bus.now)


class TestOrdered:
    def test_a_waiter_gives_up_and_leaves_nothing(self) -> None:
        bus = Bus()
        h = taken(bus)
        rid, _ = bus.lock(1, timeout_us=SECOND)
        bus.advance(900 * MS)
        assert bus.result(rid) is None
        bus.advance(200 * MS)
        assert bus.result(rid) == "timeout"
        third, _ = bus.lock(3)
        bus.run()
        bus.call(2, "unlock", h=h)
        bus.run()
        assert bus.granted(third)
        assert bus[1].service.next_deadline() != bus.now
        bus.check_at_rest()

    def test_who_waits_behind_it_moves_up(self) -> None:
        bus = Bus()
        taken(bus, PR)
        rid, _ = bus.lock(1, mode=EX, timeout_us=SECOND)
        behind, _ = bus.lock(3, mode=PR)
        bus.run()
        assert bus.result(behind) is None
        bus.advance(1100 * MS)
        assert bus.result(rid) == "timeout"
        assert bus.granted(behind)

    def test_u3_s69_the_grant_comes_first(self) -> None:
        bus = Bus()
        h = taken(bus)
        rid, _ = bus.lock(1, timeout_us=SECOND)
        bus.run()
        bus.call(2, "unlock", h=h)
        timers(bus, 1100 * MS)
        assert bus.kinds(1) == [Kind.CANCEL]
        bus.sequence(2, 1)  # the release, then the time-out
        bus.run()
        assert bus.granted(rid)
        bus.check_at_rest()

    def test_u3_s69_the_time_out_comes_first(self) -> None:
        bus = Bus()
        h = taken(bus)
        rid, _ = bus.lock(1, timeout_us=SECOND)
        bus.run()
        bus.call(2, "unlock", h=h)
        timers(bus, 1100 * MS)
        bus.sequence(1, 2)
        bus.run()
        assert bus.result(rid) == "timeout"
        assert not bus[3].table.names.keys() - bus[3].table.vacant.keys()
        bus.check_at_rest()

    def test_it_is_sent_once(self) -> None:
        bus = Bus()
        taken(bus)
        bus.lock(1, timeout_us=SECOND)
        bus.run()
        timers(bus, 2 * SECOND)
        timers(bus, 2 * SECOND)
        assert bus.kinds(1) == [Kind.CANCEL]
        message = decode(bus[1].queue[0])
        assert message.body[4] == TIMEOUT

    @pytest.mark.parametrize("first", ["cancel", "timeout"])
    def test_a_cancel_and_the_time_out(self, first: str) -> None:
        bus = Bus()
        taken(bus)
        rid, h = bus.lock(1, timeout_us=SECOND)
        bus.run()
        if first == "timeout":
            timers(bus, 1100 * MS)
        cancel = bus.call(1, "cancel", h=h)
        timers(bus, 1100 * MS)
        assert len(bus.kinds(1)) == (1 if first == "cancel" else 2)
        bus.run()
        assert bus.result(rid) == ("canceled" if first == "cancel" else "timeout")
        assert bus.result(cancel) == {"canceled": first == "cancel"}
        bus.check_at_rest()

    def test_one_that_is_granted_in_time_hears_no_more_of_it(self) -> None:
        bus = Bus()
        h = taken(bus)
        rid, _ = bus.lock(1, timeout_us=SECOND)
        bus.run()
        bus.call(2, "unlock", h=h)
        bus.run()
        assert bus.granted(rid)
        bus.run()
        before = bus.submitted
        bus.advance(2 * SECOND)
        assert bus.submitted == before
        assert bus.kinds(1) == []

    def test_a_conversion_keeps_its_old_mode(self) -> None:
        bus = Bus()
        taken(bus, PR)
        _, mine = bus.lock(1, mode=PR)
        bus.run()
        rid = bus.call(1, "convert", h=mine, mode=EX, timeout_us=SECOND)
        bus.advance(1100 * MS)
        assert bus.result(rid) == "timeout"
        down = bus.call(1, "convert", h=mine, mode=PR, timeout_us=SECOND)
        bus.run()
        assert bus.result(down)["mode"] == PR
        bus.check_at_rest()

    def test_a_conversion_that_gave_up_its_mode_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        bus = Bus()
        said: list[dict[str, Any]] = []
        refuse = bus[1].host.refuse

        def listen(session: int, rid: int, code: str, message: str, **more: Any) -> None:
            said.append(more)
            refuse(session, rid, code, message, **more)

        monkeypatch.setattr(bus[1].host, "refuse", listen)
        theirs = taken(bus, PR)
        _, mine = bus.lock(1, mode=PR)
        bus.run()
        bus.call(2, "convert", h=theirs, mode=EX)
        bus.run()
        rid = bus.call(1, "convert", h=mine, mode=EX, convdeadlk=True, timeout_us=SECOND)
        bus.run()
        bus.advance(1100 * MS)
        assert bus.result(rid) == "timeout"
        assert said == [{"mode": NL, "flags": DEMOTED}]
        bus.check_at_rest()

    @pytest.mark.parametrize("timeout", [-1, "x", 1.5, True])
    def test_nonsense_is_refused(self, timeout: object) -> None:
        bus = Bus()
        assert bus.result(bus.lock(1, timeout_us=timeout)[0]) == "invalid"


class TestPrivate:
    def test_the_owner_decides_without_a_message(self) -> None:
        bus = Bus()
        first, _ = bus.lock(1)
        bus.run()
        before = bus.submitted
        rid, _ = bus.lock(1, session=2, timeout_us=100 * MS)
        bus.advance(150 * MS)
        assert bus.granted(first)
        assert bus.result(rid) == "timeout"
        assert bus.submitted == before

    def test_in_a_handover_it_waits_its_turn(self) -> None:
        bus = Bus()
        first, _ = bus.lock(2)
        bus.run()
        rid, _ = bus.lock(1, timeout_us=SECOND)
        bus.sequence(1)
        bus.deliver()  # a handover begins
        timers(bus, 1100 * MS)
        bus.sequence(1)
        bus.sequence(2)  # the publication comes behind the time-out
        bus.run()
        assert bus.granted(first)
        assert bus.result(rid) == "timeout"
        bus.check_at_rest()


class TestWithoutQuorum:
    def test_a_request_that_was_not_sent_is_answered_in_time(self) -> None:
        bus = Bus()
        taken(bus)
        bus.view([1])
        rid, _ = bus.lock(1, b"new", timeout_us=SECOND)
        bus.advance(1100 * MS)
        assert bus.result(rid) == "timeout"
        bus.view([1, 2, 3])
        bus.advance(LEASE + SECOND)
        assert not bus[1].table.names[b"\0new"].resource.locks  # asked for and given back in one breath
        bus.check_at_rest()

    def test_nor_one_of_a_node_that_has_not_caught_up(self) -> None:
        bus = Bus()
        taken(bus)
        bus.kill(3)
        bus.view([1, 2])
        bus.run()
        bus.boot(3)
        bus.view([1, 2, 3])
        rid, _ = bus.lock(3, timeout_us=SECOND)
        timers(bus, 1100 * MS)
        assert bus.result(rid) == "timeout"
        bus.run()
        assert all(key[0] != 3 for key in bus[1].table.names[b"\0R"].resource.locks)
        bus.check_at_rest()

    def test_a_waiter_is_answered_in_time_and_withdrawn_first_thing(self) -> None:
        bus = Bus()
        h = taken(bus)
        rid, _ = bus.lock(1, timeout_us=SECOND)
        bus.run()
        bus.view([1])
        bus.view([2, 3])
        bus.advance(1100 * MS)
        assert bus.result(rid) == "timeout"
        bus.view([1, 2, 3])
        bus.run()
        bus.call(2, "unlock", h=h)
        bus.advance(LEASE + SECOND)
        assert not bus[2].table.names.keys() - bus[2].table.vacant.keys()
        bus.check_at_rest()

    def test_a_cancel_under_way_when_the_view_goes(self) -> None:
        bus = Bus()
        taken(bus)
        rid, _ = bus.lock(1, timeout_us=SECOND)
        bus.run()
        timers(bus, 1100 * MS)
        assert bus.kinds(1) == [Kind.CANCEL]
        bus.view([1])
        assert bus.result(rid) == "timeout"
        bus.view([1, 2, 3])
        bus.advance(LEASE + SECOND)
        bus.check_at_rest()

    def test_a_grant_that_nobody_has_heard_of_is_given_back(self) -> None:
        """The node that vanished may hold the lock until its lease is over: the time-out comes before that."""
        bus = Bus()
        taken(bus)
        rid, _ = bus.lock(1, timeout_us=300 * MS)
        behind, _ = bus.lock(3)
        bus.run()
        bus.kill(2)
        bus.view([1, 3])
        bus.run()
        assert bus[1].service.status()["deferred"] == 1
        bus.advance(400 * MS)
        assert bus.result(rid) == "timeout"
        bus.advance(2 * LEASE)
        assert bus.granted(behind)
        bus.check_at_rest()

    def test_a_conversion_is_answered_when_its_mode_is_known(self) -> None:
        bus = Bus()
        taken(bus, PR)
        _, mine = bus.lock(1, mode=PR)
        bus.run()
        rid = bus.call(1, "convert", h=mine, mode=PW, timeout_us=SECOND)
        bus.run()
        for node in (1, 2, 3):
            bus.view([node])
        bus.advance(1100 * MS)
        assert bus.result(rid) is None
        bus.view([1, 2, 3])
        bus.advance(LEASE + SECOND)
        assert bus.result(rid) == "timeout"
        bus.check_at_rest()

    def test_a_time_out_in_a_former_life(self) -> None:
        """The cancel was on its way when the cluster went on without this node: not asked for again."""
        bus = Bus()
        taken(bus)
        rid, _ = bus.lock(1, timeout_us=SECOND)
        bus.run()
        timers(bus, 1100 * MS)
        bus.view([2, 3])
        bus.view([1, 2, 3])
        bus.advance(LEASE + SECOND)
        assert bus.result(rid) == "timeout"
        assert [key[0] for key in bus[2].table.names[b"\0R"].resource.locks] == [2]
        bus.check_at_rest()
