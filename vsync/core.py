"""One node without its I/O: engine, quorum and services, composed. Pure, like all it is made of.

The shell hands in frames, time and local requests, and carries out ``take_outputs()`` from front to back. The
simulator does the same with a virtual clock, so that what is tested is what runs.

Deliveries and views do not leave the core: they go to the services, in their order, before anything that follows
them in the engine's list. Not thread-safe: one thread calls all methods.

What a node says of itself to the others is in ``upper``, what it tells people in ``looking``, and what clients
may ask of it in ``verbs``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from vsync import looking, verbs
from vsync.counting import roster_of
from vsync.engine import Configuration, Deliver, Engine, Install, Note, Persist, Send, State, Stopped
from vsync.engine.contacts import counts_by
from vsync.engine.outputs import Rewire, Tell
from vsync.groups import GroupService
from vsync.nodes import NodesService
from vsync.quorum import Says, Verdict, base_of, judge, lineage_of
from vsync.recorder import RecordedEngine, Recorder
from vsync.roster import Roster
from vsync.service import Credentials, Kill, Service, Spawn
from vsync.types import ClusterConfig, Member, View, position
from vsync.upper import compose, decode_upper, judged

__all__ = ["Core", "CoreOutput", "Push", "Reply"]

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


CoreOutput = Send | Tell | Rewire | Persist | Note | Stopped | Reply | Push | Spawn | Kill


class Core:
    """A node of the cluster. It is its services' ``Host``.

    ``incarnation`` must be higher than in any earlier life of this node; ``stored`` is the last ``Persist`` record;
    ``recorder`` records what the engine is given; ``owner`` is the user id, beside root's, that may administer;
    ``check`` raises ``ConfigError`` for nodes that this one could not talk to.
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
        owner: int = 0,
        check: Callable[[ClusterConfig], None] | None = None,
    ) -> None:
        self.owner = owner
        self.me = Member(config.node, incarnation)
        self.view: View | None = None
        self.verdict = Verdict(False, 0, 0, "no view yet")
        self.groups = GroupService()
        self.nodes = NodesService(owner, check)
        self.services: list[Service] = [self.groups, self.nodes, *services]
        self._by_name = {s.name: s for s in self.services}
        self._by_tag = {s.tag: s for s in self.services}
        if len(self._by_name) != len(self.services) or len(self._by_tag) != len(self.services):
            raise ValueError("two services have the same name or tag")
        rules = tuple(sorted((s.name, getattr(s, "rule_version", 1)) for s in self.services))
        self.recorder = recorder
        make = Engine if recorder is None else partial(RecordedEngine, recorder)
        self.engine = make(config, incarnation, partial(compose, self), decode_upper, stored, start_seq, rules)
        self._out: list[CoreOutput] = []
        self.sessions: dict[int, Credentials] = {}
        self.watchers: set[int] = set()  #: sessions that want to be told of views
        self._tokens = 0
        self._leave_by: int | None = None
        self._left = False
        self.waiting = True  #: not in a primary view since the start (wait_for_all)
        self.bootstrap = False  #: an operator: in the next view nodes without a mark may vote (K8)
        self.override = False  #: an operator: the next view is primary, whatever the votes
        self.now = 0  #: of the input that is being handled
        self.view_since = 0

    # ------------------------------------------------------------ inputs

    def start(self, now: int) -> None:
        """Begin."""
        self.now = now
        for service in self.services:
            service.attach(self, now)
        self.engine.start(now)
        self._drain(now)

    def receive(self, frame: bytes, now: int) -> None:
        """A frame from the network; ``now`` was read after it was received."""
        self.now = now
        self.engine.receive(frame, now)
        self._drain(now)

    def fire(self, now: int) -> None:
        """Time has passed."""
        self.now = now
        self.engine.fire(now)
        self._drain(now)
        for service in self.services:
            service.fire(now)
        self._drain(now)

    def next_deadline(self) -> int | None:
        """When ``fire`` should be called."""
        first = self.engine.next_deadline()  # asked after every input: a loop costs a third of min() and a list
        if first is not None and first <= self.now:
            return first  # at once, whatever the others say
        if self._leave_by is not None and (first is None or self._leave_by < first):
            first = self._leave_by
        for service in self.services:
            deadline = service.next_deadline()
            if deadline is not None and (first is None or deadline < first):
                first = deadline
        return first

    def open_session(self, session: int, who: Credentials, now: int) -> None:
        """A local client connected; ``session`` is never used again in this incarnation."""
        self.now = now
        self.sessions[session] = who
        for service in self.services:
            service.open(session, who, now)
        self._drain(now)

    def close_session(self, session: int, now: int) -> None:
        """A local client has gone."""
        self.now = now
        if self.sessions.pop(session, None) is not None:
            self.watchers.discard(session)
            for service in self.services:
                service.close(session, now)
            self._drain(now)

    def request(self, session: int, rid: int, service: str, verb: str, args: Mapping[str, Any], now: int) -> None:
        """A local client's request."""
        self.now = now
        target = self._by_name.get(service)
        if service == "node":
            verbs.handle(self, session, rid, verb, args)
        elif target is None:
            self.refuse(session, rid, "unknown_service", f"this node has no service {service!r}")
        else:
            target.request(session, rid, verb, args, now)
        self._drain(now)

    def spawned(self, service: str, ticket: int, exit_code: int | None, output: bytes, now: int) -> None:
        """A program that a service has asked for has ended (``Spawner.spawned``)."""
        self.now = now
        target: Any = self._by_name[service]
        target.spawned(ticket, exit_code, output, now)
        self._drain(now)

    def peer_gone(self, node: int, evidence: str, now: int) -> None:
        """The transport has evidence that the process of this node is dead (reset, then refused)."""
        self.now = now
        self.engine.peer_gone(node, evidence, now)
        self._drain(now)

    def leave(self, now: int) -> None:
        """Leave gracefully: services say goodbye in order, then the ring is told. Ends with ``Stopped``."""
        self.now = now
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
    def config(self) -> ClusterConfig:
        """See ``Host.config``: its ``peers`` are the nodes of the newest roster, with this one."""
        return self.engine.config

    @property
    def lease_basis(self) -> int | None:
        """See ``Host.lease_basis``."""
        return self.engine.lease_basis if self.engine.state is State.OPERATIONAL else None

    @property
    def last_token(self) -> int:
        """See ``Host.last_token``."""
        return self.engine.ring.last_accepted

    @property
    def stable(self) -> int:
        """See ``Host.stable``."""
        return position(self.engine.ring.stable + 1, 0)

    def submit(self, payload: bytes, urgent: bool = False, safe: bool = False) -> None:
        """See ``Host.submit``."""
        self.engine.submit(payload, self.now, urgent, safe)

    def reply(self, session: int, rid: int, result: Any) -> None:
        """See ``Host.reply``."""
        if rid and session in self.sessions:
            self._out.append(Reply(session, rid, True, result))

    def refuse(self, session: int, rid: int, code: str, message: str, **more: Any) -> None:
        """See ``Host.refuse``."""
        if rid and session in self.sessions:
            self._out.append(Reply(session, rid, False, {"code": code, "message": message, **more}))

    def push(self, session: int, service: str, kind: str, data: Any) -> None:
        """See ``Host.push``."""
        if session in self.sessions:
            self._out.append(Push(session, service, kind, data))

    def event(self, name: str, **fields: Any) -> None:
        """See ``Host.event``."""
        if self.recorder is not None:
            self.recorder.note(name, fields, self.now)
        self._out.append(Note(name, fields))

    def reform(self, reason: str) -> None:
        """See ``Host.reform``."""
        self.engine.reform(reason, self.now)

    def hurry(self) -> None:
        """See ``Host.hurry``."""
        self.engine.hurry(self.now)

    @property
    def roster(self) -> Roster:
        """See ``NodesHost.roster``."""
        return counts_by(self.engine)

    @property
    def file(self) -> Roster:
        """See ``NodesHost.file``."""
        return self.engine.file

    @property
    def outcast(self) -> bool:
        """See ``NodesHost.outcast``."""
        return self.engine.outcast

    @property
    def gone(self) -> tuple[int, ...]:
        """See ``NodesHost.gone``."""
        return self.engine.gone

    def in_view(self) -> bool:
        """See ``NodesHost.in_view``."""
        return self.view is not None and self.view.id == self.engine.ring.id

    def enroll(self, roster: Roster, keep: bool) -> None:
        """See ``NodesHost.enroll``."""
        self.override = self.override or keep
        self._out.append(self.engine.enroll(roster, self.now))

    def spawn(self, service: str, ticket: int, argv: Sequence[str], stdin: bytes, timeout_us: int) -> None:
        """See ``Host.spawn``."""
        self._out.append(Spawn(service, ticket, tuple(argv), stdin, timeout_us))

    def kill(self, service: str, ticket: int) -> None:
        """See ``Host.kill``."""
        self._out.append(Kill(service, ticket))

    def status(self) -> dict[str, Any]:
        """A snapshot for people and programs; msgpack-able."""
        return looking.status(self)

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
        view = judged(c)
        if not view.transitional:
            self.view = view
            self.verdict = judge(view.entries)
            self.view_since = now
            self._say_who_decided(view)
            self._out.append(self._store(view, now))
        self.event(
            "transitional_view" if view.transitional else "view_installed",
            ring=str(view.id),
            members=list(view.nodes),
            joined=[m.node for m in view.joined],
            left=[m.node for m in view.left],
            primary=view.primary,
            reason=view.reason,
            **({} if view.primary else {"why": judge(view.entries).why}),
        )
        if not view.transitional and len(view.members) == 1 and len(self.config.peers) > 1:
            self._say_alone()
        for service in self.services:
            service.view(view, now)
        for session in sorted(self.watchers):
            self.push(session, "node", "view", looking.view_dict(view, self.config))

    def _store(self, view: View, now: int) -> Persist:
        """What has to be on disk before anything of a view is told (K7, K8)."""
        self.bootstrap = self.override = False  # a word about this view, not about later ones
        if not view.primary:
            return self.engine.settled(view.id, now)
        self.waiting = False
        base, roster = base_of(view.entries), roster_of(view.entries)
        return self.engine.mark(view.id, lineage_of(view.id, view.entries), base, roster, now)

    def _say_who_decided(self, view: View) -> None:
        """At every member, for whoever asks later: an operator's word went into this view, said at these nodes."""
        for word, event in ((Says.BOOTSTRAP, "bootstrapped"), (Says.OVERRIDE, "quorum_overridden")):
            nodes = [node for node, entry in sorted(view.entries.items()) if entry.says & word]
            if nodes:
                self.event(event, ring=str(view.id), said_at=nodes, members=list(view.nodes), primary=view.primary)

    def _say_alone(self) -> None:
        """Whoever reads this node's log should not need to guess: a refusal stands in the others' logs only."""
        if self.outcast:
            self.event("alone", why=self.nodes.status()["remedy"])
            return
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
