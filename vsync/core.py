"""One node without its I/O: engine, quorum and services, composed. Pure, like all it is made of.

The shell hands in frames, time and local requests, and carries out ``take_outputs()`` from front to back. The
simulator does the same with a virtual clock, so that what is tested is what runs.

Deliveries and views do not leave the core: they go to the services, in their order, before anything that follows
them in the engine's list. Not thread-safe: one thread calls all methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgpack

from vsync.engine import Configuration, Deliver, Engine, Install, Note, Persist, Send, State, Stopped
from vsync.groups import GroupService
from vsync.quorum import is_primary, tally
from vsync.recorder import RecordedEngine, Recorder
from vsync.service import Credentials, Service
from vsync.types import NO_RING, ClusterConfig, Member, RingId, View, position

__all__ = ["Core", "CoreOutput", "Push", "Reply", "decode_upper", "view_dict"]

LEAVE_PATIENCE = 2_000_000  #: µs that services have for their goodbyes


@dataclass(slots=True)
class Reply:
    """The one answer to request ``rid`` of a session."""

    session: int
    rid: int
    ok: bool
    data: Any


@dataclass(slots=True)
class Push:
    """An unsolicited event for a session."""

    session: int
    service: str
    kind: str
    data: Any


CoreOutput = Send | Persist | Note | Stopped | Reply | Push


class Core:
    """A node of the cluster. It is its services' ``Host``.

    ``incarnation`` must be higher than in any earlier life of this node; ``stored`` is the last ``Persist`` record;
    ``recorder`` records what the engine is given.
    Raises ``ValueError`` when the record is unreadable or two services share a name or tag.
    """

    def __init__(
        self,
        config: ClusterConfig,
        incarnation: int,
        services: Sequence[Service],
        stored: bytes | None,
        start_seq: int = 0,
        recorder: Recorder | None = None,
    ) -> None:
        self.config = config
        self.me = Member(config.node, incarnation)
        self.view: View | None = None
        self.groups = GroupService()
        self.services: list[Service] = [self.groups, *services]
        self._by_name = {s.name: s for s in self.services}
        self._by_tag = {s.tag: s for s in self.services}
        if len(self._by_name) != len(self.services) or len(self._by_tag) != len(self.services):
            raise ValueError("two services have the same name or tag")
        rules = tuple(sorted((s.name, getattr(s, "rule_version", 1)) for s in self.services))
        self.recorder = recorder
        make = Engine if recorder is None else partial(RecordedEngine, recorder)
        self.engine = make(config, incarnation, self._upper, decode_upper, stored, start_seq, rules)
        self._out: list[CoreOutput] = []
        self._sessions: dict[int, Credentials] = {}
        self._watchers: set[int] = set()
        self._tokens = 0
        self._leave_by: int | None = None
        self._left = False
        self._now = 0
        self._view_since = 0

    # ------------------------------------------------------------ inputs

    def start(self, now: int) -> None:
        """Begin."""
        self._now = now
        for service in self.services:
            service.attach(self, now)
        self.engine.start(now)
        self._drain(now)

    def receive(self, frame: bytes, now: int) -> None:
        """A frame from the network; ``now`` was read after it was received."""
        self._now = now
        self.engine.receive(frame, now)
        self._drain(now)

    def fire(self, now: int) -> None:
        """Time has passed."""
        self._now = now
        self.engine.fire(now)
        self._drain(now)
        for service in self.services:
            service.fire(now)
        self._drain(now)

    def next_deadline(self) -> int | None:
        """When ``fire`` should be called."""
        deadlines = [self.engine.next_deadline(), self._leave_by, *(s.next_deadline() for s in self.services)]
        return min((d for d in deadlines if d is not None), default=None)

    def open_session(self, session: int, who: Credentials, now: int) -> None:
        """A local client connected; ``session`` is never used again in this incarnation."""
        self._now = now
        self._sessions[session] = who
        for service in self.services:
            service.open(session, who, now)
        self._drain(now)

    def close_session(self, session: int, now: int) -> None:
        """A local client has gone."""
        self._now = now
        if self._sessions.pop(session, None) is not None:
            self._watchers.discard(session)
            for service in self.services:
                service.close(session, now)
            self._drain(now)

    def request(self, session: int, rid: int, service: str, verb: str, args: Mapping[str, Any], now: int) -> None:
        """A local client's request."""
        self._now = now
        target = self._by_name.get(service)
        if service == "node":
            self._node_request(session, rid, verb)
        elif target is None:
            self.refuse(session, rid, "unknown_service", f"this node has no service {service!r}")
        else:
            target.request(session, rid, verb, args, now)
        self._drain(now)

    def peer_gone(self, node: int, evidence: str, now: int) -> None:
        """The transport has evidence that the process of this node is dead (reset, then refused)."""
        self._now = now
        self.engine.peer_gone(node, evidence, now)
        self._drain(now)

    def leave(self, now: int) -> None:
        """Leave gracefully: services say goodbye in order, then the ring is told. Ends with ``Stopped``."""
        self._now = now
        if self._leave_by is None and not self._left:
            self._leave_by = now + LEAVE_PATIENCE
            for service in self.services:
                service.leaving(now)
            self._drain(now)

    def take_outputs(self) -> list[CoreOutput]:
        """What is to be done, front to back; the list is handed over."""
        out, self._out = self._out, []
        return out

    # ------------------------------------------------------------ Host, for the services

    @property
    def lease_basis(self) -> int | None:
        """See ``Host.lease_basis``."""
        return self.engine.lease_basis if self.engine.state is State.OPERATIONAL else None

    @property
    def last_token(self) -> int:
        """See ``Host.last_token``."""
        return self.engine.ring.last_accepted

    def submit(self, payload: bytes, urgent: bool = False, safe: bool = False) -> None:
        """See ``Host.submit``."""
        self.engine.submit(payload, self._now, urgent, safe)

    def reply(self, session: int, rid: int, result: Any) -> None:
        """See ``Host.reply``."""
        if rid and session in self._sessions:
            self._out.append(Reply(session, rid, True, result))

    def refuse(self, session: int, rid: int, code: str, message: str, **more: Any) -> None:
        """See ``Host.refuse``."""
        if rid and session in self._sessions:
            self._out.append(Reply(session, rid, False, {"code": code, "message": message, **more}))

    def push(self, session: int, service: str, kind: str, data: Any) -> None:
        """See ``Host.push``."""
        if session in self._sessions:
            self._out.append(Push(session, service, kind, data))

    def event(self, name: str, **fields: Any) -> None:
        """See ``Host.event``."""
        if self.recorder is not None:
            self.recorder.note(name, fields, self._now)
        self._out.append(Note(name, fields))

    def reform(self, reason: str) -> None:
        """See ``Host.reform``."""
        self.engine.reform(reason, self._now)

    # ------------------------------------------------------------ status

    def status(self) -> dict[str, Any]:
        """A snapshot for people and programs; msgpack-able."""
        view = self.view
        votes, expected = tally(view.entries.values()) if view else (0, 0)
        return {
            "node": self._describe(self.me),
            "cluster": self.config.cluster,
            "view": view_dict(view, self.config) if view else None,
            "since_us": self._now - self._view_since if view else None,
            "votes": votes,
            "expected_votes": expected,
            "nodes": [self._node_row(p.node) for p in self.config.peers],
            "ring": self.engine.status(),
            "services": {s.name: s.status() for s in self.services},
        }

    def _node_row(self, node: int) -> dict[str, Any]:
        peer = self.config.peer(node)
        assert peer is not None
        member = self.view is not None and node in self.view.nodes
        operational = self.engine.state is State.OPERATIONAL
        return {
            "id": node,
            "name": peer.name,
            "address": ", ".join(peer.addresses),
            "votes": peer.votes,
            "member": member,
            "state": ("member" if operational else "forming") if member else "absent",
            "local": node == self.me.node,
            "representative": member and operational and self.engine.ring.representative.node == node,
        }

    # ------------------------------------------------------------ details

    def _drain(self, now: int) -> None:
        """Hand the engine's outputs on, in order, until nothing more comes of it."""
        while True:
            if self._tokens != self.engine.tokens and self.engine.state is State.OPERATIONAL:
                self._tokens = self.engine.tokens
                outputs = self.engine.take_outputs()
                self._dispatch(outputs, now)
                for service in self.services:
                    service.token(now)
            outputs = self.engine.take_outputs()
            if not outputs:
                break
            self._dispatch(outputs, now)
        self._maybe_leave(now)

    def _dispatch(self, outputs: Sequence[Any], now: int) -> None:
        for output in outputs:
            if type(output) is Deliver:
                self._deliver(output, now)
            elif type(output) is Install:
                self._install(output.configuration, now)
            else:
                self._out.append(output)

    def _deliver(self, packet: Deliver, now: int) -> None:
        for index, message in enumerate(packet.messages):
            service = self._by_tag.get(message[0]) if message else None
            if service is not None:
                service.deliver(packet.origin, position(packet.seq, index), message, packet.installing, now)

    def _install(self, c: Configuration, now: int) -> None:
        primary = is_primary(c.entries.values())
        view = View(c.id, c.members, c.joined, c.left, primary, c.transitional, c.reason, c.entries, c.previous)
        if not view.transitional:
            self.view = view
            self._view_since = now
            if view.primary:
                self._out.append(self.engine.mark(view.id, now))
        self.event(
            "transitional_view" if view.transitional else "view_installed",
            ring=str(view.id),
            members=list(view.nodes),
            joined=[m.node for m in view.joined],
            left=[m.node for m in view.left],
            primary=view.primary,
            reason=view.reason,
        )
        if not view.transitional and len(view.members) == 1 and len(self.config.peers) > 1:
            self._say_alone()
        for service in self.services:
            service.view(view, now)
        for session in sorted(self._watchers):
            self.push(session, "node", "view", view_dict(view, self.config))

    def _say_alone(self) -> None:
        """Whoever reads this node's log should not need to guess: a refusal stands in the others' logs only."""
        others = ", ".join(f"{p.name} ({p.addresses[0]})" for p in self.config.peers if p.node != self.me.node)
        why = f"no ring with {others}: they are not running or not reachable, or refuse this node (see their logs)"
        self.event("alone", why=why)

    def _maybe_leave(self, now: int) -> None:
        if self._leave_by is None or self._left:
            return
        if now >= self._leave_by or all(s.may_leave() for s in self.services):
            self._left = True
            self._leave_by = None
            self.engine.leave(now)
            self._dispatch(self.engine.take_outputs(), now)

    def _upper(self) -> bytes:
        own = self.config.peer(self.config.node)
        assert own is not None
        announcements = {s.tag: s.announce() for s in self.services}
        expected = sum(p.votes for p in self.config.peers)
        packed: bytes = msgpack.packb((own.votes, expected, announcements, self.engine.record.mark))
        return packed

    def _node_request(self, session: int, rid: int, verb: str) -> None:
        if verb == "status":
            self.reply(session, rid, self.status())
        elif verb == "members":
            self.reply(session, rid, self.status()["nodes"])
        elif verb == "groups":
            self.reply(session, rid, self.groups.status())
        elif verb == "watch":
            self._watchers.add(session)
            self.reply(session, rid, {})
            if self.view is not None:
                self.push(session, "node", "view", view_dict(self.view, self.config))
        else:
            self.refuse(
                session, rid, "unknown_verb", f"the node knows status, members, groups, watch, not {verb!r}"
            )

    def _describe(self, member: Member) -> dict[str, Any]:
        return {"id": member.node, "name": self.config.name(member.node), "incarnation": member.incarnation}


def view_dict(view: View, config: ClusterConfig) -> dict[str, Any]:
    """A view as sessions see it."""

    def rows(members: Sequence[Member]) -> list[dict[str, Any]]:
        return [{"id": m.node, "name": config.name(m.node), "incarnation": m.incarnation} for m in members]

    return {
        "id": str(view.id),
        "seq": view.id.seq,
        "rep": view.id.rep,
        "members": rows(view.members),
        "joined": rows(view.joined),
        "left": rows(view.left),
        "primary": view.primary,
        "transitional": view.transitional,
        "reason": view.reason,
    }


def decode_upper(raw: bytes) -> tuple[int, Mapping[int, bytes], int, RingId]:
    """Read a member's entry; nonsense counts as nothing at all, the same at every member."""
    try:
        votes, expected, announcements, (seq, rep) = msgpack.unpackb(raw, strict_map_key=False)
        if all(type(n) is int and n >= 0 for n in (votes, expected, seq, rep)):
            return votes, {int(k): bytes(v) for k, v in announcements.items()}, expected, RingId(seq, rep)
    except Exception:  # noqa: BLE001 - whatever a peer's bytes do to the decoder
        pass
    return 0, {}, 0, NO_RING
