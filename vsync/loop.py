"""The body of a node's thread: waits, feeds the core, and carries out what the core wants – front to back.

One turn: wait for frames, local requests, calls from other threads or the next deadline; handle a bounded
amount of each; publish leases; let answers go. A clock is read after every reception, never before
(pitfalls K10).

Leases are published *before* the answers of the same turn: a client that learns of a grant must find the
lease generation it was made under.

The thread ends by the engine's ``Stopped``, by ``stop``, or by a failure: storage that cannot be written
(what follows a ``Persist`` must not leave the machine without it) or an exception from the core, which is
a bug; a node that does not know its own state any more is better gone. Either way every session is told.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import zmq

from vsync.clock import boot_us
from vsync.core import Core, Push, Reply
from vsync.dumps import DUMP_ON, Dumps
from vsync.engine.outputs import Note, Persist, Rewire, Send, Stopped, Tell
from vsync.errors import Backpressure, MessageTooLarge, NotConnected, VsyncError
from vsync.ipc_server import Server
from vsync.logs import get_logger
from vsync.programs import Programs
from vsync.service import Credentials, Kill, Spawn
from vsync.storage import Storage
from vsync.transport import Transport

__all__ = ["Loop", "Session"]

CALLS_PER_TURN = 256
LEASE_PASS_US = 10_000  #: sessions that got no answer have their lease published this often
LEASE_STEP_US = 50_000  #: smaller steps of a deadline are not worth a write
#: Notes that are more than news: an operator decided what the nodes cannot know.
WARN_OF = frozenset({
    "bootstrap", "bootstrapped", "nodes_changed", "nodes_differ", "quorum_override", "quorum_overridden", "removed",
})

_log = get_logger("vsync.node")


class Session(Protocol):
    """Where answers go: a socket or a channel in this process."""

    number: int

    def welcome(self, body: Mapping[str, Any]) -> None: ...
    def reply(self, rid: int, ok: bool, data: Any) -> None: ...
    def push(self, service: str, kind: str, data: Any) -> None: ...
    def lease(self, generation: int, deadline: int) -> None: ...
    def flush(self) -> None: ...
    def end(self, code: str, text: str) -> None: ...


class Loop:
    """Runs one core on one thread. ``post`` and ``adopt`` may be called by any thread, the rest by the loop's."""

    def __init__(
        self, core: Core, transport: Transport, storage: Storage, dumps: Dumps | None = None
    ) -> None:
        self.failure: Exception | None = None  #: why the node died, if it did
        self.stopped: str | None = None  #: why the loop ends
        self._core = core
        self._transport = transport
        self._storage = storage
        self._dumps = dumps
        self._server: Server | None = None
        self._programs = Programs(self._program_ended)
        self._sessions: dict[int, Session] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()  # guards the next four
        self._calls: deque[Callable[[], None]] = deque()
        self._adopted: dict[int, Session] = {}
        self._ended: str | None = None
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._leases = next((s.lease for s in core.services if hasattr(s, "lease")), None)
        self._published: dict[int, tuple[int, int]] = {}
        self._answered: dict[int, Session] = {}  # sessions with something to flush
        self._publish_all = True
        self._last_pass = 0
        self._core_due: int | None = None
        self.counters = dict.fromkeys(("turns", "persists", "requests", "sessions_opened"), 0)
        self._core_asked = False  # ``_core_due`` is what the core said since it was last given something
        self._plain = all(isinstance(door, int) for door in transport.pollables)  # not ZeroMQ, which is slower
        self._doors: frozenset[Any] = frozenset(transport.pollables)
        self._poller: select.epoll | zmq.Poller = select.epoll() if self._plain else zmq.Poller()
        for door in (self._wake, *transport.pollables):
            self._poller.register(door, select.EPOLLIN if self._plain else zmq.POLLIN)

    def listen(self, path: Path, runtime_dir: Path) -> None:
        """Serve clients at ``path``; before ``run``. Raises ``TransportError``."""
        self._server = Server(path, runtime_dir, self)
        self._poller.register(self._server.fileno(), select.EPOLLIN if self._plain else zmq.POLLIN)

    def discard(self) -> None:
        """Instead of ``run``: give free what this object itself opened."""
        os.close(self._wake)
        if isinstance(self._poller, select.epoll):
            self._poller.close()

    # ------------------------------------------------------------ called by any thread

    def post(self, call: Callable[[], None]) -> None:
        """Have the loop call ``call``, soon and in order. Raises ``NotConnected`` when the loop has ended."""
        with self._lock:
            if self._ended is not None:
                raise NotConnected(self._ended)
            if not self._calls:
                os.eventfd_write(self._wake, 1)
            self._calls.append(call)

    def adopt(self, session: Session) -> None:
        """Promise ``session`` an ``end`` when the loop ends. Raises ``NotConnected`` when it has."""
        with self._lock:
            if self._ended is not None:
                raise NotConnected(self._ended)
            self._adopted[session.number] = session

    def new_session(self) -> int:
        """A number that no other session of this node has had."""
        return next(self._numbers)

    def leave(self) -> None:
        """Ask for a graceful leave."""
        with contextlib.suppress(NotConnected):
            self.post(lambda: self._core.leave(boot_us()))

    def record(self, reason: str) -> None:
        """Have the flight recorder write what it has."""
        if self._dumps is not None:
            with contextlib.suppress(NotConnected):
                self.post(partial(self._dumps.start, reason))

    def stop(self) -> None:
        """End without leaving, as a crash would, but with sessions told."""

        def stop() -> None:
            self.stopped = self.stopped or "the node was stopped"

        with contextlib.suppress(NotConnected):
            self.post(stop)

    # ------------------------------------------------------------ the thread

    def run(self) -> None:
        """Until the end. Never raises: see ``failure``."""
        try:
            self._core.start(boot_us())
            self._carry_out()
            while self.stopped is None:
                self._turn()
        except Exception as e:  # noqa: BLE001 - told to every session and to the log, with its traceback
            self.failure = e
            self.stopped = f"the node failed: {e}"
            # An expected failure – a full disk – explains itself; anything else is a bug and needs its
            # traceback.
            _log.critical("node_failed", error=str(e), exc_info=not isinstance(e, VsyncError))
            if self._dumps is not None and not isinstance(e, VsyncError):
                self._dumps.write(f"crash: {e!r}")
        self._shut()

    def _turn(self) -> None:
        self.counters["turns"] += 1
        ready = {source for source, _ in self._poll(self._patience())}
        got_some = not ready.isdisjoint(self._doors) and self._receive()
        if not got_some and ready <= self._doors and self._only_links():
            return
        if self._wake in ready:
            self._run_calls()
        if self._server is not None and (self._server.backlog or self._server.fileno() in ready):
            self._server.turn()
        self._fire()
        self._publish()
        self._flush()

    def _poll(self, patience: int) -> list[tuple[Any, int]]:
        """What is ready within so many milliseconds; -1: for ever."""
        if isinstance(self._poller, select.epoll):
            return self._poller.poll(patience / 1000 if patience > 0 else patience)
        return self._poller.poll(patience)

    def _only_links(self) -> bool:
        """Whether this turn is one of the transport's own – pings, answers –, the core having nothing to do.

        There are more of them than of others while the ring is idle, so they are kept short.
        """
        now = boot_us()
        deadline = self._transport.next_deadline()
        if deadline is not None and deadline <= now:
            self._transport.fire(now)
        told = self._tell_gone(now)
        busy = self._server is not None and self._server.backlog
        return not told and not busy and not self._answered and (self._core_due is None or now < self._core_due)

    def _patience(self) -> int:
        """Milliseconds to wait, rounded up so that a deadline has passed when the poll returns; -1: for ever."""
        if self._server is not None and self._server.backlog:
            return 0
        deadlines = [d for d in (self._core_deadline(), self._transport.next_deadline()) if d is not None]
        return max(0, (min(deadlines) - boot_us() + 999) // 1000) if deadlines else -1

    def _core_deadline(self) -> int | None:
        """The core's, asked once after each thing that it was given."""
        if not self._core_asked:
            self._core_asked = True
            self._core_due = self._core.next_deadline()
        return self._core_due

    def _receive(self) -> bool:
        """Whether there was anything for the core."""
        frames = self._transport.receive()
        now = boot_us()
        for frame in frames:
            self._core.receive(frame, now)
            self._carry_out()  # now, not at the end: the token must not wait for the rest of the batch
        return self._tell_gone(now) or bool(frames)

    def _fire(self) -> None:
        now = boot_us()
        deadline = self._transport.next_deadline()
        if deadline is not None and deadline <= now:
            self._transport.fire(now)
            self._tell_gone(now)
        deadline = self._core_deadline()
        if deadline is not None and deadline <= now:
            self._core.fire(now)
            self._carry_out()

    def _tell_gone(self, now: int) -> bool:
        gone = self._transport.take_gone()
        for node, evidence in gone:
            self._core.peer_gone(node, evidence, now)
            self._carry_out()
        return bool(gone)

    def _run_calls(self) -> None:
        with self._lock:
            calls = [self._calls.popleft() for _ in range(min(CALLS_PER_TURN, len(self._calls)))]
            if not self._calls:
                os.eventfd_read(self._wake)
        for call in calls:
            call()
            self._carry_out()

    def _carry_out(self) -> None:
        """Called whenever the core was given something."""
        self._core_asked = False
        for output in self._core.take_outputs():
            kind = type(output)
            if isinstance(output, Send):
                self._transport.send(output.to, output.frame)
            elif isinstance(output, Reply):
                if (session := self._sessions.get(output.session)) is not None:
                    session.reply(output.rid, output.ok, output.data)
                    self._answered[output.session] = session
            elif isinstance(output, Push):
                self._publish_all = True
                if (session := self._sessions.get(output.session)) is not None:
                    session.push(output.service, output.kind, output.data)
                    self._answered[output.session] = session
            elif isinstance(output, Persist):
                self.counters["persists"] += 1
                self._storage.write(output.record)
            elif isinstance(output, Note):
                self._publish_all = True
                log = _log.warning if output.name in WARN_OF else _log.info
                log(output.name, **{f"{k}_" if k == "event" else k: v for k, v in output.fields.items()})
                if output.name in DUMP_ON and self._dumps is not None:
                    self._dumps.start(output.name)
            elif isinstance(output, Rewire):
                self._transport.rewire(output.peers)
            elif isinstance(output, Tell):
                self._transport.tell(output.node, output.address, output.frame)
            elif isinstance(output, Spawn):
                self._programs.start(output)
            elif isinstance(output, Kill):
                self._programs.kill(output.service, output.ticket)
            else:
                assert isinstance(output, Stopped), kind
                self.stopped = output.reason

    def _program_ended(self, wanted: Spawn, code: int | None, output: bytes) -> None:
        """Called by the thread that has waited for the program."""

        def tell() -> None:
            self._core.spawned(wanted.service, wanted.ticket, code, output, boot_us())

        with contextlib.suppress(NotConnected):
            self.post(tell)

    def _publish(self) -> None:
        if self._leases is None:
            return
        now = boot_us()
        everybody = self._publish_all or now - self._last_pass >= LEASE_PASS_US
        if everybody:
            self._publish_all = False
            self._last_pass = now
        for number, session in (self._sessions if everybody else self._answered).items():
            generation, deadline = self._leases(number)
            before = self._published.get(number, (0, 0))
            if generation != before[0] or not 0 <= deadline - before[1] < LEASE_STEP_US:
                self._published[number] = (generation, deadline)
                session.lease(generation, deadline)

    def _flush(self) -> None:
        while self._answered:
            _, session = self._answered.popitem()
            session.flush()  # may find the client gone, which closes a session and makes new outputs
        if self._server is not None:
            self._server.flush_all()

    def _shut(self) -> None:
        assert self.stopped is not None
        with self._lock:
            self._ended = self.stopped
            self._calls.clear()
            adopted = list(self._adopted.values())
        code = "failed" if self.failure else "stopped"
        for session in self._sessions.values():
            session.lease(0, 0)
        for session in adopted:
            session.end(code, self.stopped)
        if self._server is not None:
            self._server.close(code, self.stopped)
        self._transport.close()
        self._programs.close()
        self._storage.close()
        self.discard()
        _log.info("node_stopped", reason=self.stopped)

    # ------------------------------------------------------------ sessions (SessionHost)

    def session_opened(self, session: Session, who: Credentials) -> None:
        """A client said hello: it gets its welcome before anything else."""
        core, me = self._core, self._core.me
        self._sessions[session.number] = session
        self._answered[session.number] = session
        self.counters["sessions_opened"] += 1
        session.welcome(
            {
                "node": {"id": me.node, "name": core.config.name(me.node), "incarnation": me.incarnation},
                "cluster": core.config.cluster,
                "lease_us": core.config.timing.lease,
                "services": sorted(["node", *(s.name for s in core.services)]),
            }
        )
        core.open_session(session.number, who, boot_us())
        self._carry_out()

    def session_request(self, session: int, rid: int, service: str, verb: str, args: dict[str, Any]) -> None:
        """A well-formed request of a session."""
        target = self._sessions.get(session)
        if target is None:
            return
        self.counters["requests"] += 1
        if service != "node":
            pass
        elif verb == "status":
            if rid:
                answer = {**self._core.status(), "transport": self._transport.status(), "io": self._status()}
                target.reply(rid, True, answer)
                self._answered[session] = target
            return
        elif verb == "record":
            self._record(session, rid)
            return
        try:
            self._core.request(session, rid, service, verb, args, boot_us())
        except (Backpressure, MessageTooLarge) as e:
            code = "backpressure" if isinstance(e, Backpressure) else "too_large"
            if rid:
                target.reply(rid, False, {"code": code, "message": str(e)})
                self._answered[session] = target
        self._carry_out()

    def session_closed(self, session: int) -> None:
        """The session is over."""
        self._answered.pop(session, None)
        self._published.pop(session, None)
        with self._lock:
            self._adopted.pop(session, None)
        if self._sessions.pop(session, None) is not None and self._ended is None:
            self._core.close_session(session, boot_us())
            self._carry_out()

    def _record(self, session: int, rid: int) -> None:
        """A client asks for a recording: it is written beside the ring, and answered when it is."""

        def answer(ok: bool, data: dict[str, Any]) -> None:
            target = self._sessions.get(session)
            if rid and target is not None:
                target.reply(rid, ok, data)
                self._answered[session] = target

        def done(ok: bool, data: dict[str, Any]) -> None:
            with contextlib.suppress(NotConnected):
                self.post(partial(answer, ok, data))

        if self._dumps is None:
            off = "the flight recorder is off: set [daemon] recorder_mb, or give the node a state directory"
            answer(False, {"code": "off", "message": off})
        else:
            self._dumps.start("asked", done)

    def _status(self) -> dict[str, Any]:
        return {**self.counters, "sessions": len(self._sessions), **self._transport.counters}
