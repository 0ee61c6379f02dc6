"""One simulated host: a disk, a clock that drifts, and at times a process with a production core in it."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

from vsync.engine.outputs import Note, Persist, Rewire, Send, Stopped, Tell
from vsync.engine.record import Record
from vsync.service import Credentials, Kill, Service, Spawn
from vsync.testing.bounds import check_buffers
from vsync.testing.disk import Disk
from vsync.testing.rules import STATES, check_sent
from vsync.testing.trace import Crashed, Frame, Noted, Started
from vsync.testing.violation import Violation
from vsync.testing.workload import NOTE, Recorder
from vsync.types import ClusterConfig, Member, View

if TYPE_CHECKING:
    from vsync.testing.cluster import SimCluster

__all__ = ["CoreFactory", "SimNode"]

SESSION = 1  #: the recorder's own session; plug-ins use larger numbers
_START_SEQ = 50_000_000  # of a node without a record: what a wall clock showed at the beginning of the run
_TICK = 1_000  # µs; it counts faster than seconds, as simulated rings change faster than real ones
_SLOW_QUEUE = 300  # frames that the kernel keeps for a process that does not take them
_ENTERED = {f"{state}_entered": state for state in (*STATES, "stopped")}  # notes of the engine


class CoreLike(Protocol):
    """What the simulator needs of ``vsync.core.Core``."""

    view: View | None

    def start(self, now: int) -> None: ...
    def receive(self, frame: bytes, now: int) -> None: ...
    def fire(self, now: int) -> None: ...
    def next_deadline(self) -> int | None: ...
    def open_session(self, session: int, who: Credentials, now: int) -> None: ...
    def close_session(self, session: int, now: int) -> None: ...
    def request(
        self, session: int, rid: int, service: str, verb: str, args: Mapping[str, Any], now: int
    ) -> None: ...
    def peer_gone(self, node: int, evidence: str, now: int) -> None: ...
    def spawned(self, service: str, ticket: int, exit_code: int | None, output: bytes, now: int) -> None: ...
    def leave(self, now: int) -> None: ...
    def take_outputs(self) -> Sequence[Any]: ...
    def status(self) -> dict[str, Any]: ...


CoreFactory = Callable[[ClusterConfig, int, Sequence[Service], bytes | None, int], CoreLike]


class SimNode:
    """Node ``id`` of a ``SimCluster``; it outlives the processes that run on it.

    ``core``, ``recorder`` and ``services`` are those of the present process, or of the last one.
    """

    def __init__(self, cluster: SimCluster, config: ClusterConfig) -> None:
        self.cluster = cluster
        self.config = config
        self.id = config.node
        self.disk = Disk()
        self.incarnation = 0
        self.me = Member(self.id, 0)  #: the present (or last) process as a member
        self.up = False
        self.paused = False
        self.leaving = False  #: asked to leave, not gone yet
        self.stops = 0  #: how often a process of this node has ended
        self.recorder = Recorder()
        self.services: list[Service] = []
        self.core: CoreLike
        rng = Random(f"node/{cluster.options.seed}/{self.id}")
        ppm = cluster.options.drift_ppm
        self._rate = 1_000_000 + rng.randint(-ppm, ppm)  # local µs per true second
        self._offset = rng.randrange(1, 3_600) * 1_000_000
        self._rng = rng
        self._armed: int | None = None  # true time of the earliest wake-up that is scheduled
        self._fuse: int | None = None  # outputs left before the process dies
        self._fuse_counts_frames = False  # ... or only frames left
        self._die_at_persist = ""
        self._doomed = False
        self.phase = ""  #: the state in which the engine made the output that is being carried out
        self._backlog: list[Callable[[], None]] = []  # inputs of a stopped process
        self._asked: deque[Callable[[int], None]] = deque()  # inputs that came while outputs were carried out
        self._carrying = False
        self._frozen_at: int | None = None  # true time at which its clock stopped
        self._lag = 0  # µs that frames wait before a slow process takes them
        self._late: deque[tuple[int, bytes]] = deque()  # such frames, with their senders
        self._programs: set[tuple[str, int]] = set()  # that run: service and ticket

    # -- clocks -----------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """The engine's state, in a word; empty for a core without one."""
        engine = getattr(self.core, "engine", None)
        return engine.state.value if engine is not None else ""

    @property
    def may_be_primary(self) -> bool:
        """Whether this node has been in a primary view, or may have a companion that is (K7)."""
        stored = Record.decode(self.disk.record) if self.disk.record is not None else Record(0)
        return bool(stored.mark.seq or stored.attempts)

    def clock(self, true: int | None = None) -> int:
        """This host's boot-time clock in µs, at true time ``true`` (default: now)."""
        if true is None:
            true = self.cluster.scheduler.now if self._frozen_at is None else self._frozen_at
        return self._offset + true * self._rate // 1_000_000

    def true_time(self, local: int) -> int:
        """The first true µs at which this host's clock shows ``local``."""
        return -((self._offset - local) * 1_000_000 // self._rate)

    # -- what the world does to it ----------------------------------------------------------

    def start(self) -> None:
        """Start a process: a new incarnation with the record that the disk kept."""
        if self.up or self.cluster.nodes.get(self.id) is not self:
            return
        self.cluster.disturbed()
        self.incarnation += 1
        self.me = Member(self.id, self.incarnation)
        self.up, self.paused, self.leaving = True, False, False
        self._armed = None
        self.spare()
        self._backlog.clear()
        self._asked.clear()
        self._late.clear()
        self._lag = 0
        self.recorder = Recorder()
        self.services = [self.recorder]
        for plugin in self.cluster.plugins:
            self.services.extend(plugin.services(self.config))
        record = self.disk.record
        self.cluster.trace.add(Started(self.me, record is not None), self.cluster.scheduler.now)
        start_seq = 0 if record is not None else self.wall_clock()
        self.core = self.cluster.core_factory(
            self.config, self.incarnation, tuple(self.services), record, start_seq
        )
        self.phase = self.state  # from here on the notes among the outputs say where the engine is
        self._do(self.core.start)
        self._do(lambda now: self.core.open_session(SESSION, Credentials(1, 0, 0, "sim"), now))
        for plugin in self.cluster.plugins:
            if self.up:
                plugin.started(self)

    def wall_clock(self) -> int:
        """Where the ring sequence starts without a record, as in production: higher than any used before."""
        return _START_SEQ + self.cluster.scheduler.now // _TICK

    def crash(self) -> None:
        """Kill the process now (kill -9). The disk stays."""
        if self.up:
            self._end("crashed")

    def crash_soon(self) -> None:
        """Kill it between two of its next outputs; at times just before or after a record is written."""
        if not self.up:
            return
        self._die_at_persist = self._rng.choice(["", "", "before", "after"])
        self._fuse = self._rng.randrange(0, 12) if not self._die_at_persist else None
        self._fuse_counts_frames = self._rng.random() < 0.6
        self.cluster.scheduler.after(self.config.timing.token, self._lose_patience, self.stops)

    def _lose_patience(self, stops: int) -> None:
        if self.stops == stops and (self._fuse is not None or self._die_at_persist):
            self.crash()

    def spare(self) -> None:
        """Take back a ``crash_soon`` that has not happened yet."""
        self._fuse, self._die_at_persist, self._doomed = None, "", False

    def leave(self) -> None:
        """Ask the process to leave gracefully; it ends with its ``Stopped`` output."""
        if self.up and not self.paused:
            self.cluster.disturbed()
            self.leaving = True
            self._do(self.core.leave)

    def pause(self, frozen: bool = False) -> None:
        """Stop the process (SIGSTOP): frames pile up, no timer fires. ``frozen``: its clock stands still, too."""
        self.cluster.disturbed()
        self.paused = self.up
        if frozen and self.up and self._frozen_at is None:
            self._frozen_at = self.cluster.scheduler.now

    def _thaw(self) -> None:
        """The clock goes on from where it stopped."""
        if self._frozen_at is not None:
            shown = self.clock()
            self._frozen_at = None
            self._offset -= self.clock() - shown

    def resume(self) -> None:
        """Let it go on; what has piled up is handled at once."""
        self._thaw()
        if not self.paused:
            return
        self.cluster.disturbed()
        self.paused = False
        backlog, self._backlog = self._backlog, []
        for work in backlog:
            work()
        self._wake(None)

    # -- what it is asked to do -------------------------------------------------------------

    @property
    def view(self) -> View | None:
        """The current regular view, or ``None``."""
        return self.core.view if self.up else None

    @property
    def delivered(self) -> list[tuple[int, bytes]]:
        """What this process has delivered of the messages sent with ``send``: (origin node, data)."""
        return self.recorder.delivered

    def send(self, data: bytes = b"", size: int | None = None, safe: bool = False, chat: int = 0) -> None:
        """Multicast a message of the simulator's own service, and ``chat`` more, each when that has come."""
        args: dict[str, Any] = {"data": data} if size is None else {"size": size}
        args.update(safe=safe, chat=chat)
        self.request(SESSION, 0, "sim", "send", args)

    def request(self, session: int, rid: int, service: str, verb: str, args: Mapping[str, Any]) -> None:
        """Hand a request to the core, like what follows: later if the process is stopped, never if it is gone."""
        self._input(lambda now: self.core.request(session, rid, service, verb, args, now))

    def open_session(self, session: int, name: str) -> None:
        """A local client connects."""
        self._input(lambda now: self.core.open_session(session, Credentials(session, 0, 0, name), now))

    def close_session(self, session: int) -> None:
        """A local client has gone."""
        self._input(lambda now: self.core.close_session(session, now))

    def peer_gone(self, node: int) -> None:
        """The transport takes the process of this node for dead."""
        self.cluster.disturbed()
        self._input(lambda now: self.core.peer_gone(node, "connection reset, then refused", now))

    def slow_down(self, lag: int) -> None:
        """From now on frames wait so long (µs) before they are taken, the oldest first; 0: no longer."""
        self.cluster.disturbed()
        self._lag = lag

    def receive(self, src: int, frame: bytes) -> None:
        """A frame of node ``src`` arrives from the network."""
        if not self.up:
            return
        if not self._lag and not self._late:
            self._take(src, frame)
        elif len(self._late) < _SLOW_QUEUE:  # what does not fit is lost
            self._late.append((src, frame))
            self.cluster.scheduler.after(self._lag, self._take_late, self.stops)

    def _take_late(self, stops: int) -> None:
        if self.up and self.stops == stops and self._late:
            self._take(*self._late.popleft())

    def _take(self, src: int, frame: bytes) -> None:
        if self.paused:
            self._backlog.append(lambda: self._take(src, frame))
        elif self.up and not (self.cluster.rules and self.cluster.broken(self, "received", src, frame)):
            self._do(self.core.receive, frame)

    def _input(self, work: Callable[[int], None]) -> None:
        if self.paused:
            self._backlog.append(lambda: self._do(work))
        elif self._carrying:
            self._asked.append(work)
        elif self.up:
            self._do(work)

    # -- running the core -------------------------------------------------------------------

    def _do(self, work: Callable[..., None], *args: Any) -> None:
        """One input to the core – ``work``, with the time as its last argument –, then its outputs, its timer."""
        if not self.up:
            return
        try:
            work(*args, self.clock())
            outputs = self.core.take_outputs()
        except Violation:
            raise
        except Exception as error:
            where = "".join(traceback.format_exception(error)[-4:])
            raise Violation("EVS-E28", f"node {self.id}: the core raised {error!r}\n{where}") from error
        self._carrying = True
        try:
            for output in outputs:
                if not self._carry_out(output):
                    return
        finally:
            self._carrying = False
        for plugin in self.cluster.plugins:
            plugin.carried_out(self)
        if self.cluster.scheduler.steps % 16 == 0:
            check_buffers(self.id, self.core)
        self._arm()
        if self.cluster.rules:
            self.cluster.on_state(self)
        while self._asked and self.up:  # by clients that answered at once: it comes behind what was decided before
            self._do(self._asked.popleft())

    def _carry_out(self, output: Any) -> bool:
        """Do what one output says. False if the process died before it or with it."""
        cluster, kind = self.cluster, type(output)
        if self._fuse is not None and (kind is Send or not self._fuse_counts_frames):
            if self._fuse == 0:
                if kind is Send:  # the last frame reaches some of its receivers
                    self._send(output.to[: self._rng.randrange(len(output.to) + 1)], output.frame)
                self._end("crashed")
                return False
            self._fuse -= 1
        if kind is Send:
            self._send(output.to, output.frame)
            return self._survives()
        if kind is Note:
            event = output.fields["event"] if output.name == NOTE else None
            self.phase = _ENTERED.get(output.name, self.phase)
            cluster.trace.add(event or Noted(self.me, output.name, output.fields), cluster.scheduler.now)
        elif kind is Persist:
            if self._die_at_persist != "before":
                self.disk.write(output.record)
            if self._die_at_persist:
                self._end(f"crashed {self._die_at_persist} fsync")
                return False
        elif kind is Stopped:
            self._end(f"stopped: {output.reason}")
            return False
        elif kind is Tell:
            self._send((output.node,), output.frame)
        elif kind is Rewire:
            pass  # here everybody can reach everybody; the engine decides whom it talks to
        elif kind is Spawn:
            self._spawn(output)
        elif kind is Kill:
            key = (output.service, output.ticket)
            self.cluster.scheduler.after(0, self._program_ends, self.stops, key, None, b"killed")
        else:
            self._to_session(output)
        return True

    def _survives(self) -> bool:
        """A rule may have decided that the process dies with this frame."""
        if self._doomed and self.up:
            self._end("crashed")
        return self.up

    def doom(self) -> None:
        """Let the process die as soon as its present output has been carried out."""
        self._doomed = True

    def _send(self, to: tuple[int, ...], frame: bytes) -> None:
        cluster = self.cluster
        cluster.trace.add(Frame(self.me, to, frame), cluster.scheduler.now)
        if self.phase:  # else it is a core without an engine
            check_sent(frame, self.phase, self.id)
        for node in to:
            if not cluster.rules or not cluster.broken(self, "sent", node, frame):
                cluster.network.send(self.id, node, frame)

    def _to_session(self, output: Any) -> None:
        """A ``Reply`` or a ``Push``."""
        for plugin in self.cluster.plugins:
            if hasattr(output, "rid"):
                plugin.reply(self, output.session, output.rid, output.ok, output.data)
            else:
                plugin.push(self, output.session, output.service, output.kind, output.data)

    def _spawn(self, wanted: Spawn) -> None:
        """Run a program: a plug-in says what it does, and how long that takes."""
        told = next((t for p in self.cluster.plugins if (t := p.program(self, wanted)) is not None), None)
        after, code, output = told or (1_000, None, b"no such program")
        if after > wanted.timeout:
            after, code, output = wanted.timeout, None, b"no end in time"
        key = wanted.service, wanted.ticket
        self._programs.add(key)
        self.cluster.scheduler.after(after, self._program_ends, self.stops, key, code, output)

    def _program_ends(self, stops: int, key: tuple[str, int], code: int | None, output: bytes) -> None:
        """It has ended, unless it was killed before, or its process has."""
        if self.stops == stops and key in self._programs:
            self._programs.discard(key)
            self._input(lambda now: self.core.spawned(*key, code, output, now))

    def _end(self, how: str) -> None:
        self._programs.clear()
        self.up = self.paused = self.leaving = False
        self.stops += 1
        self.cluster.disturbed()
        self._thaw()
        self._backlog.clear()
        self._asked.clear()
        self.cluster.trace.add(Crashed(self.me, how), self.cluster.scheduler.now)
        for plugin in self.cluster.plugins:
            plugin.stopped(self)

    # -- its timer --------------------------------------------------------------------------

    def _arm(self) -> None:
        """Make sure that a wake-up is scheduled no later than the core wants it."""
        deadline = self.core.next_deadline()
        if deadline is None:
            return
        at = max(self.true_time(deadline), self.cluster.scheduler.now)
        if self._armed is None or at < self._armed:
            self._armed = at
            self.cluster.scheduler.at(at, self._wake, (self.incarnation, at))

    def _wake(self, ticket: tuple[int, int] | None) -> None:
        """The scheduled time has come. Wake-ups that were overtaken by an earlier one do nothing."""
        if ticket is not None:
            if ticket != (self.incarnation, self._armed):
                return
            self._armed = None
        if not self.up or self.paused:
            return
        deadline = self.core.next_deadline()
        if deadline is not None and deadline <= self.clock():
            self._do(self.core.fire)
        else:
            self._arm()
