"""Process groups: one ordered stream, exact leaves, no message from a stranger (CPG-G1..G4)."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from vsync.errors import Backpressure
from vsync.groups import TAG, GroupService
from vsync.service import Credentials
from vsync.types import NO_RING, Entry, Member, RingId, View


class Bus:
    """Group services on one total order, with views put in by hand. It is every service's host, one object each."""

    def __init__(self, nodes: int) -> None:
        self.queue: list[tuple[Member, bytes]] = []
        self.ports = {n: Port(self, Member(n, 100)) for n in range(1, nodes + 1)}
        self.rings = dict.fromkeys(self.ports, NO_RING)
        self.components: list[set[int]] = []
        self.seq = 0

    def view(self, *components: set[int]) -> None:
        """Each component gets its regular view; what is queued goes on in the sender's component."""
        self.components = list(components)
        for component in components:
            self.seq += 1
            ring = RingId(self.seq, min(component))
            members = tuple(self.ports[n].me for n in sorted(component))
            entries = {m.node: Entry(m, self.rings[m.node], 1, {}, len(self.ports)) for m in members}
            for n in sorted(component):
                port = self.ports[n]
                port.view = View(ring, members, (), (), True, False, "test", entries)
                port.service.view(port.view, 0)
            self.rings.update(dict.fromkeys(component, ring))

    def run(self) -> None:
        """Deliver everything, in order, in each component."""
        position = 0
        while self.queue:
            origin, payload = self.queue.pop(0)
            position += 1
            for n in sorted(next(c for c in self.components if origin.node in c)):
                self.ports[n].service.deliver(origin, position, payload, False, 0)


class Port:
    """One node."""

    def __init__(self, bus: Bus, me: Member) -> None:
        self.bus = bus
        self.me = me
        self.view: View | None = None
        self.answers: list[tuple[int, Any]] = []
        self.pushes: list[tuple[int, str, Any]] = []
        self.notes: list[str] = []
        self.service = GroupService()
        self.service.attach(self, 0)

    def submit(self, payload: bytes, urgent: bool = False, safe: bool = False) -> None:
        own = next((i for i, (m, _) in enumerate(self.bus.queue) if m == self.me), len(self.bus.queue))
        self.bus.queue.insert(own if urgent else len(self.bus.queue), (self.me, payload))

    def reply(self, session: int, rid: int, result: Any) -> None:
        self.answers.append((rid, result))

    def refuse(self, session: int, rid: int, code: str, message: str, **more: Any) -> None:
        self.answers.append((rid, code))

    def push(self, session: int, service: str, kind: str, data: Any) -> None:
        self.pushes.append((session, kind, data))

    def event(self, name: str, **fields: Any) -> None:
        self.notes.append(name)

    def do(self, session: int, verb: str, **args: Any) -> None:
        self.service.request(session, 1, verb, args, 0)

    def story(self, session: int) -> list[str]:
        """What a session saw, in short; forgets it."""
        lines = []
        for number, kind, data in self.pushes:
            if number != session:
                continue
            if kind == "message":
                lines.append(f"{data['sender']['node']}:{data['data'].decode()}")
            elif data["joined"] or data["left"]:
                changes = [f"+{p['node']} {p['reason']}" for p in data["joined"]]
                changes += [f"-{p['node']} {p['reason']}" for p in data["left"]]
                lines.append(", ".join(changes))
        self.pushes.clear()
        return lines


@pytest.fixture
def bus() -> Bus:
    """Three nodes in one ring; session 7 of each is a member of group g."""
    bus = Bus(3)
    bus.view({1, 2, 3})
    for port in bus.ports.values():
        port.service.open(7, Credentials(4000 + port.me.node, 0, 0, "prog"), 0)
        port.do(7, "join", group="g")
    bus.run()
    return bus


def test_members_join_in_order_and_see_themselves(bus: Bus) -> None:
    """The first event of a member is the view that contains it; later joins follow in one order (G1)."""
    assert bus.ports[1].story(7) == ["+1 join", "+2 join", "+3 join"]
    assert bus.ports[3].story(7) == ["+3 join"]
    assert bus.ports[2].service.status()["g"][0] == {"node": 1, "session": 7, "name": "prog", "pid": 4001}


def test_messages_have_one_order_and_end_with_membership(bus: Bus) -> None:
    """A message reaches whoever joined before it and has not left before it (G2)."""
    for port in bus.ports.values():
        port.story(7)
    bus.ports[2].do(7, "send", group="g", data=b"one")
    bus.ports[3].do(7, "leave", group="g")
    bus.ports[1].do(7, "send", group="g", data=b"two", wait=True)
    bus.run()
    assert bus.ports[1].story(7) == bus.ports[2].story(7) == ["2:one", "-3 leave", "1:two"]
    assert bus.ports[3].story(7) == ["2:one", "-3 leave"]
    assert bus.ports[1].answers[-1] == (1, {})


def test_no_ghost_of_a_process_that_ended_out_of_sight(bus: Bus) -> None:
    """Node 3 heard nothing while 2's last process ended, and had no view of its own in between: 2's list is empty.

    Found by the simulator: a node without processes sent no list, and the others never learnt (CPG-G3; corosync
    PR #828 had the same end).
    """
    bus.view({1, 2})
    bus.ports[2].service.close(7, 0)
    bus.run()
    bus.view({1, 2, 3})
    bus.run()
    for port in bus.ports.values():
        assert [p["node"] for p in port.service.status()["g"]] == [1, 3]


def test_leaving_twice_answers_both(bus: Bus) -> None:
    """The second request must not take the place of the first, which would never be answered."""
    bus.ports[3].service.request(7, 11, "leave", {"group": "g"}, 0)
    bus.ports[3].service.request(7, 12, "leave", {"group": "g"}, 0)
    bus.run()
    assert bus.ports[3].answers[-2:] == [(12, "not_member"), (11, {})]


def test_a_dead_client_leaves_once(bus: Bus) -> None:
    """procdown, exactly one leave, and its messages under way come before it (G3)."""
    bus.ports[1].story(7)
    bus.ports[2].do(7, "send", group="g", data=b"last")
    bus.ports[2].service.close(7, 0)
    bus.run()
    assert bus.ports[1].story(7) == ["2:last", "-2 procdown"]


def test_partition_and_merge(bus: Bus) -> None:
    """nodedown on both sides; nodeup when they meet; who died meanwhile is no ghost (corosync PR #828)."""
    bus.view({1, 2}, {3})
    assert bus.ports[1].story(7)[-1] == "-3 nodedown"
    assert bus.ports[3].story(7)[-1] == "-1 nodedown, -2 nodedown"
    bus.ports[2].service.close(7, 0)
    bus.run()
    bus.ports[1].story(7)
    bus.view({1, 2, 3})
    bus.run()
    assert bus.ports[1].story(7) == ["+3 nodeup"]
    assert bus.ports[3].story(7) == ["+1 nodeup"]
    assert bus.ports[1].service.status() == bus.ports[2].service.status() == bus.ports[3].service.status()


def test_the_list_of_processes_overtakes_what_waits(bus: Bus) -> None:
    """After a merge nobody hears a process that it does not know (G4): the list goes first."""
    bus.view({1, 2}, {3})
    bus.run()
    bus.ports[1].story(7)
    bus.ports[3].do(7, "send", group="g", data=b"queued while alone")
    bus.view({1, 2, 3})
    bus.run()
    assert bus.ports[1].story(7) == ["+3 nodeup", "3:queued while alone"]


def test_a_stranger_is_not_heard(bus: Bus) -> None:
    """A message from a session that is not a member reaches nobody."""
    stranger = bus.ports[3].service._encode(2, "g", 99, (0, b"boo"))
    bus.ports[1].story(7)
    bus.queue.append((bus.ports[3].me, stranger))
    bus.run()
    assert bus.ports[1].story(7) == []


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xff", b"\x93\x01\x02\x03", b"\x94\x02\xa1g\x07\xc0", b"\x94\x04\xa0\x00\x91\x01", b"\xc1" * 9],
)
def test_garbage_in_the_stream_is_skipped(bus: Bus, payload: bytes) -> None:
    """It is the same garbage at every member."""
    before = bus.ports[1].service.status()
    bus.queue.append((bus.ports[3].me, bytes([TAG]) + payload))
    bus.run()
    assert bus.ports[1].service.status() == before
    assert bus.ports[1].notes == ["group.garbage"]


@pytest.mark.parametrize(
    ("verb", "args", "code"),
    [
        ("join", {"group": "g"}, "exists"),
        ("join", {"group": ""}, "invalid"),
        ("join", {"group": "x" * 129}, "invalid"),
        ("join", {}, "invalid"),
        ("leave", {"group": "other"}, "not_member"),
        ("send", {"group": "other", "data": b""}, "not_member"),
        ("send", {"group": "g", "data": "text"}, "invalid"),
        ("dance", {"group": "g"}, "unknown_verb"),
    ],
)
def test_refusals_name_the_reason(bus: Bus, verb: str, args: dict[str, Any], code: str) -> None:
    """A stable word for each."""
    bus.ports[1].do(7, verb, **args)
    assert bus.ports[1].answers[-1] == (1, code)


# -- batches


def packed(*texts: bytes) -> bytes:
    return msgpack.packb(list(texts))


def batches(port: Port, session: int) -> list[list[bytes]]:
    """The messages that a session was pushed together."""
    return [msgpack.unpackb(data["batch"]) for n, kind, data in port.pushes if (n, kind) == (session, "messages")]


def test_a_batch_is_one_message_and_handed_on_as_it_is(bus: Bus) -> None:
    bus.ports[2].do(7, "sends", group="g", batch=packed(b"one", b"two"))
    assert bus.ports[2].answers[-1] == (1, {})
    assert len(bus.queue) == 1
    bus.run()
    for port in bus.ports.values():
        assert batches(port, 7) == [[b"one", b"two"]]


@pytest.mark.parametrize(
    "batch", [None, "text", b"", b"\xc1", msgpack.packb([]), msgpack.packb([b"x", 1]), msgpack.packb({b"x": b"y"})]
)
def test_nonsense_is_no_batch(bus: Bus, batch: object) -> None:
    bus.ports[2].do(7, "sends", group="g", batch=batch)
    assert bus.ports[2].answers[-1] == (1, "invalid")
    bus.ports[2].do(7, "sends", group="h", batch=packed(b"x"))
    assert bus.ports[2].answers[-1] == (1, "not_member")
    assert not bus.queue


def test_a_batch_waits_for_room_and_is_answered_then(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    port = bus.ports[2]
    full = True
    submit = port.submit

    def submit_if_there_is_room(payload: bytes, urgent: bool = False, safe: bool = False) -> None:
        if full:
            raise Backpressure("full")
        submit(payload, urgent, safe)

    monkeypatch.setattr(port, "submit", submit_if_there_is_room)
    port.answers.clear()
    port.do(7, "sends", group="g", batch=packed(b"one"))
    assert port.answers == []
    port.do(7, "send", group="g", data=b"overtakes")
    port.do(7, "sends", group="g", batch=packed(b"overtakes"))
    assert port.answers == [(1, "backpressure")] * 2
    port.service.token(0)
    assert len(port.answers) == 2
    full = False
    port.service.token(0)
    assert port.answers[2:] == [(1, {})]
    bus.run()
    assert batches(bus.ports[1], 7) == [[b"one"]]


def test_what_waits_goes_with_its_session(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    port = bus.ports[2]
    submit = port.submit

    def full(payload: bytes, urgent: bool = False, safe: bool = False) -> None:
        raise Backpressure("full")

    monkeypatch.setattr(port, "submit", full)
    port.do(7, "sends", group="g", batch=packed(b"one"))
    port.service.close(7, 0)
    monkeypatch.setattr(port, "submit", submit)
    port.service.token(0)
    bus.run()
    assert batches(bus.ports[1], 7) == []
    assert [p["node"] for p in bus.ports[1].service.status()["g"]] == [1, 3]


def test_a_batch_of_a_stranger_is_dropped(bus: Bus) -> None:
    bus.ports[2].do(7, "sends", group="g", batch=packed(b"one"))
    bus.queue.insert(0, (bus.ports[2].me, bytes((TAG,)) + msgpack.packb((3, "", 7, None))))  # it is down before
    bus.run()
    assert batches(bus.ports[1], 7) == []
