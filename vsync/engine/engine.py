"""The engine: one member of a Totem single ring with extended virtual synchrony, as a deterministic state machine.

::

      receive(frame, now) ──▶ ┌──────────────────────────────┐
      fire(now)           ──▶ │ GATHER ▶ COMMIT ▶ RECOVERY ▶ │ ──▶ take_outputs(): one ordered list of
      submit(payload,now) ──▶ │        OPERATIONAL           │     Send, Persist, Deliver, Install, Note
      leave(now)          ──▶ └──────────────────────────────┘
      next_deadline()     ◀──

Bytes, time and submissions come in; effects go out. No socket, clock, thread, file or random number is touched,
so the same object runs in production, in the simulator and in tests, and any run can be repeated.

Reading order: ``states`` (the picture), ``gather``, ``commit``, ``recovery``, ``operational``; this file holds what
they share and decides which frames may be acted on at all.

Not thread-safe: one thread calls all methods.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vsync.engine import admission, claims, commit, contacts, gather, linger, merging, operational
from vsync.engine.change import Change
from vsync.engine.commit import Forming
from vsync.engine.gather import Gathering
from vsync.engine.outputs import Note, Output, Persist, Send, Stopped
from vsync.engine.record import Record
from vsync.engine.ring import Ring
from vsync.engine.states import TIMERS, TRANSITIONS, Reason, State
from vsync.engine.timers import Timer, TimerTable
from vsync.errors import Backpressure, FrameError, MessageTooLarge
from vsync.roster import Roster
from vsync.types import MAX_MESSAGE, NO_RING, Bases, ClusterConfig, Member, Peer, RingId
from vsync.wire import (
    WIRE_VERSION,
    FrameType,
    PacketFlag,
    claimed_sender,
    cluster_tag,
    decode_cancel,
    decode_data,
    decode_header,
    decode_token,
    encode_header,
)
from vsync.wire_forming import (
    Hello,
    News,
    decode_commit,
    decode_join,
    decode_news,
    decode_probe,
)

__all__ = ["Engine", "Upper", "UpperLayer"]

#: What the upper layers put into a commit entry: as of now, or as if these attempts had been installed one after
#: the other, or with the mark of an attempt of a former life.
Upper = Callable[..., bytes]
#: Reads it back: the fields of ``types.Entry`` from ``votes`` on. Must not raise.
UpperLayer = Callable[[bytes], tuple[Any, ...]]

MAX_LARGE = 64  #: waiting messages beyond which no message larger than a packet is taken: bounds the memory
DELIVERIES = 4096  #: messages handed up in one step; the rest follow when the ring has had its turn
MANY_GATHERS = 12  #: attempts in a row after which something is wrong with the network, not with a node
REFUSED = 8  #: complaints that the status shows
NOTE_EVERY = 10_000_000  #: µs between two notes of the same complaint about the same node


class Engine:
    """One member. ``stored`` is the record of the last ``Persist`` (``None`` if there never was one).

    ``upper()`` returns the upper layers' bytes for a commit entry, ``decode_upper`` reads them back. Without a
    stored record the ring sequence starts at ``start_seq`` (pitfalls C5: wall-clock seconds since 2024).
    Raises ``ValueError`` if the stored record is not one of ours.
    """

    def __init__(
        self,
        config: ClusterConfig,
        incarnation: int,
        upper: Upper,
        decode_upper: UpperLayer,
        stored: bytes | None = None,
        start_seq: int = 0,
        rules: tuple[tuple[str, int], ...] = (),
    ) -> None:
        own = config.peer(config.node)
        if own is None:
            raise ValueError(f"node {config.node} is not among the configured nodes")
        self.config = config
        self.timing = config.timing
        self.me = Member(config.node, incarnation)
        self.upper = upper
        self.decode_upper = decode_upper
        self.state = State.GATHER
        self.ring = Ring(NO_RING, (self.me,), self.me)  #: the ring last installed
        self.forming: Forming | None = None  #: the ring being formed, in Commit and Recovery
        self.gathering = Gathering((self.me,))
        self.record = Record(start_seq) if stored is None else Record.decode(stored)
        self.hello = Hello(
            config.cluster, own.addresses[0], WIRE_VERSION, WIRE_VERSION, rules, self.record.cluster
        )
        self.claims: list[Forming] = []  #: attempts whose end I reached and which broke (``claims``)
        self.missed: tuple[RingId, ...] = ()  #: attempts I had committed to and whose end I did not reach
        self.ring_seq = self.record.ring_seq + (stored is not None)  #: last one committed to; a new life goes on
        self.highest_ring_seq = self.ring_seq  #: last one heard of
        self.timers = TimerTable()
        self.queue: deque[tuple[int, bytes]] = deque()  #: flags (SAFE or none) and message
        self.pieces: deque[tuple[bytes, int]] = deque()  #: of a large message that is being sent
        self.whole: tuple[int, bytes] = (0, b"")  #: that message, until its last piece is sequenced
        self.backoff: dict[Member, tuple[int, int]] = {}  #: alive but not fit for the ring: try again at, delay
        self.last_change: dict[str, Any] = {}  #: why and how fast the present view came to be
        self.lease_basis: int | None = None
        self.tokens = 0  #: accepted so far
        self.rotation = 0  #: µs, smoothed: the time between two visits of the token
        self.aru_held: Counter[int] = Counter()  #: visits at which a node held everybody's aru down
        self.budget = DELIVERIES  #: messages that may still be handed up in this step
        self.now = 0  #: of the input that is being handled
        self.leavers: set[Member] = set()
        self.counters: Counter[str] = Counter()

        self._out: list[Output] = []
        self._self: deque[bytes] = deque()  #: frames to myself: a ring of one still forms by the rules
        self._tag = cluster_tag(config.cluster)
        self._headers = {kind: encode_header(kind, self._tag, self.me) for kind in FrameType}
        self.youngest: dict[int, int] = {}  #: incarnation by node: older ones are dead
        self._complained: dict[tuple[int, str], int] = {}
        self._change = Change()  #: the change that is going on

        self.own: Peer  #: this node as its file has it, and all of the file, and what else ``contacts`` keeps
        self.file: Roster
        self.heard: News  #: the newest roster, and the mark that it goes with
        self.contacts: tuple[Peer, ...]
        self.outcast: bool  #: the newest roster is without this node
        self.gone: tuple[int, ...]
        self.told: dict[int, int]
        contacts.begin(self, own)

    # ------------------------------------------------------------ inputs

    def start(self, now: int) -> None:
        """Begin to look for others."""
        self._at(now)
        gather.enter(self, Reason.START, now)
        self._run(now)

    def receive(self, frame: bytes, now: int) -> None:
        """A frame from the network. ``now`` must be read after it was received (pitfalls D6). Never raises."""
        self._at(now)
        if self.state is not State.STOPPED:
            self._handle(frame, now)
            self._run(now)

    def fire(self, now: int) -> None:
        """Time has passed. Harmless when nothing is due."""
        self._at(now)
        for timer in self.timers.due(now):
            if self.timers.take(timer, now):
                self._expired(timer, now)
        self._run(now)

    def submit(self, payload: bytes, now: int, urgent: bool = False, safe: bool = False) -> None:
        """Multicast ``payload`` in agreed order; it is delivered to this node too (EVS-E14).

        What is not sequenced before a view change is sent in the next configuration. ``urgent`` goes ahead of all
        that waits, so that it can be a node's first message in a new ring. ``safe``: deliver it only when every
        member is known to have it (EVS-E22). Raises ``Backpressure`` when
        ``config.send_queue`` messages wait, ``MessageTooLarge`` over ``MAX_MESSAGE`` bytes.
        """
        self._at(now)
        if len(payload) > MAX_MESSAGE:
            raise MessageTooLarge(f"message of {len(payload)} bytes; the limit is {MAX_MESSAGE}")
        entry = (int(PacketFlag.SAFE) if safe else 0, payload)
        if urgent:
            self.queue.appendleft(entry)
        elif len(self.queue) >= self.config.send_queue:
            raise Backpressure(f"{len(self.queue)} messages wait for the token")
        elif len(payload) > self.config.packet_bytes and len(self.queue) >= MAX_LARGE:
            raise Backpressure(f"{len(self.queue)} messages wait for the token, too many to take in a large one")
        else:
            self.queue.append(entry)
        operational.wake(self, now)
        self._run(now)

    def peer_gone(self, node: int, evidence: str, now: int) -> None:
        """The transport has evidence that the process of this node is dead (reset and refused)."""
        self._at(now)
        gather.on_peer_gone(self, node, evidence, now)
        self._run(now)

    def leave(self, now: int) -> None:
        """Go in peace: the others re-form at once. Ends with ``Stopped``."""
        self._at(now)
        if self.state is not State.STOPPED:
            gather.send_leave(self)
            self._stop("left")

    def reform(self, reason: str, now: int) -> None:
        """Form a new ring with whoever is there."""
        self._at(now)
        if self.state is State.OPERATIONAL:
            gather.enter(self, Reason.ASKED, now, why=reason)
            self._run(now)

    def hurry(self, now: int) -> None:
        """A layer above needs the token to go round: it does not linger here."""
        linger.hurry(self, now)

    def next_deadline(self) -> int | None:
        """When ``fire`` should be called, or ``None``."""
        return self.timers.next_deadline()

    def take_outputs(self) -> list[Output]:
        """What is to be done, front to back; the list is handed over."""
        out, self._out = self._out, []
        return out

    def status(self) -> dict[str, Any]:
        """A snapshot for operators."""
        ring = self.ring
        return {
            "state": self.state.value,
            "ring": str(ring.id),
            "members": [m.node for m in ring.members],
            "aru": ring.aru,
            "high": ring.high,
            "delivered": ring.delivered,
            "queue": len(self.queue),
            "held": ring.held is not None,
            "gather": {
                "proc": sorted(m.node for m in self.gathering.proc),
                "failed": sorted(m.node for m in self.gathering.failed),
            },
            "backoff": {str(m.node): u - self.now for m, (u, _) in sorted(self.backoff.items()) if u > self.now},
            "last_change": self.last_change,
            "refused": self._refused(),
            "aru_held_by": {str(node): visits for node, visits in sorted(self.aru_held.items()) if node},
            "time_since_token_last_received_us": self.now - ring.last_accepted if ring.last_accepted else None,
            "mtt_rx_token_us": self.rotation,
            "counters": dict(sorted(self.counters.items())),
        }

    def _at(self, now: int) -> None:
        """Every input begins here. A deadline missed by half a token timeout: the process did not run."""
        due = self.timers.next_deadline()
        if due is not None and now - max(due, self.now) > self.timing.token // 2 and self.now:
            self.count("process_pauses")
            self.note("process_pause", paused_ms=(now - self.now) // 1000)
        self.now = now
        self.budget = DELIVERIES

    # ------------------------------------------------------------ what the phases use

    def enter(self, state: State, reason: Reason | None = None, **details: Any) -> None:
        """The only place where the state changes."""
        assert state in TRANSITIONS[self.state], f"{self.state} to {state}"
        self._change.enter(state, reason, details, self.ring.last_accepted, self.now)
        if state is not self.state or state is State.GATHER:
            fields = dict(details, **({"reason": reason.value} if reason else {}))
            self.note(f"{state.value}_entered", old=self.state.value, **fields)
            self.count(f"{state.value}_entered")
        self.counters["continuous_gather"] = self._change.attempts
        if state is State.GATHER and self._change.attempts == MANY_GATHERS:
            self.count("firewall_enabled_or_nic_failure")
            self.note(
                "cannot_agree", attempts=MANY_GATHERS, advice="look for a firewall, a broken link, a wrong address"
            )
        if state is not State.OPERATIONAL:
            self.lease_basis = None if state is State.GATHER else self.lease_basis
        self.state = state
        self.timers.keep(*TIMERS[state])

    def installed(self, now: int) -> None:
        """The forming ring has become the ring: Operational."""
        self.enter(State.OPERATIONAL)
        self.last_change = self._change.report(str(self.ring.id))
        self.note("view_change", **self.last_change)
        self._change = Change()
        claims.installed(self)
        merging.back_off(self, now)
        self.gathering = Gathering(self.ring.members)
        self.leavers.clear()
        for member in self.ring.members:  # of some no JOIN may have come through, only the word of others
            self.youngest[member.node] = max(member.incarnation, self.youngest.get(member.node, 0))
        if self.pieces:  # nobody can have put it together: it begins anew in this ring
            self.pieces.clear()
            self.queue.appendleft(self.whole)
        self.timers.set(Timer.MERGE, now + self.timing.merge + self.jitter(self.timing.merge))
        if not self.ring.alone:
            self.timers.set(Timer.TOKEN, now + self.timing.token)

    def why(self) -> str:
        """What began the change that goes on."""
        return self._change.first()

    def active_ring(self) -> Ring | None:
        """The ring whose token counts in this state."""
        if self.state is State.OPERATIONAL:
            return self.ring
        if self.state is State.RECOVERY and self.forming is not None:
            return self.forming.ring
        return None

    def give_up(self, member: Member, reason: Reason, now: int) -> None:
        """Form a new ring without this member, which is alive: all are told that it is, and back off from it."""
        self.gathering.failed.add(member)
        self.gathering.heard.add(member)
        gather.enter(self, reason, now, node=member.node)

    def change_reason(self) -> str:
        """Why the view changes, for people."""
        return self._change.reason()

    def output(self, output: Output) -> None:
        """Append to the one ordered list."""
        self._out.append(output)

    def send(self, node: int, frame: bytes) -> None:
        """To one member; a frame to myself is handled before the current input is done."""
        if node == self.me.node:
            self._self.append(frame)
        else:
            self._out.append(Send((node,), frame))

    def multicast(self, ring: Ring, frame: bytes) -> None:
        """To the other members of a ring."""
        if ring.others:
            self._out.append(Send(ring.others, frame))

    def others(self) -> tuple[int, ...]:
        """All that this node talks to, whether they are in the ring or not."""
        return tuple(peer.node for peer in self.contacts if peer.node != self.me.node)

    def broadcast(self, frame: bytes) -> None:
        """To every other configured node."""
        if others := self.others():
            self._out.append(Send(others, frame))

    def persist(self, record: bytes) -> None:
        """Before anything behind it leaves, this is on disk."""
        self._out.append(Persist(record))

    def mark(
        self, view: RingId, lineage: int, base: tuple[tuple[int, int], ...], roster: Roster | None, now: int
    ) -> Persist:
        """This view is primary: the record that has to be stored before anything in it is told (pitfalls K8)."""
        bases: Bases = ((view, tuple((node, votes) for node, votes in base)),)
        if view != self.ring.id:  # an attempt, left at once: perhaps nobody has acted in it
            open_ones = tuple((a.ring, a.base) for a in reversed(self.record.attempts) if a.ring < view)
            bases += open_ones + self.record.bases
        self.record = replace(
            self.record,
            attempts=tuple(attempt for attempt in self.record.attempts if attempt.ring > view),
            mark=view,
            lineage=lineage,
            bases=bases,
            roster=roster,
            pending=False,
        )
        self.hello = replace(self.hello, lineage=lineage)
        if roster is not None:
            contacts.learn(self, roster, view, lineage)
        contacts.introduce(self)
        here = view == self.ring.id and self.state is State.OPERATIONAL
        if here and roster is not None and contacts.part(self, roster):
            gather.enter(self, Reason.NODES, now, version=roster.version)
        return Persist(self.record.encode())

    def enroll(self, roster: Roster, now: int) -> Persist:
        """An ordered message in a primary view has changed who belongs to the cluster: form the next ring by that.

        Returns the record that has to be stored before anything else leaves this node.
        """
        contacts.enroll(self, roster)
        if self.state is State.OPERATIONAL:
            gather.enter(self, Reason.NODES, now, version=roster.version)
        return Persist(self.record.encode())

    def settled(self, view: RingId, now: int) -> Persist:
        """This view, which is not primary, is installed: the record to store (K7).

        What a former life may have reached stays open: in this view nobody acts on it, and somebody who comes later
        may know that it came to nothing.
        """
        open_ones = tuple(attempt for attempt in self.record.attempts if attempt.ring != view)
        self.record = replace(self.record, attempts=open_ones)
        return Persist(self.record.encode())

    def note(self, name: str, **fields: Any) -> None:
        """Tell the operator."""
        self._out.append(Note(name, fields))

    def count(self, name: str, by: int = 1) -> None:
        """Count under the names operators know (stats.srp.*)."""
        self.counters[name] += by

    def header(self, kind: FrameType) -> bytes:
        """My header for this kind of frame."""
        return self._headers[kind]

    def jitter(self, limit: int) -> int:
        """0..limit µs, different by node and time, the same in every replay."""
        seed = self.me.node << 32 | self.counters["memb_join_tx"]
        mixed = seed * 0x9E3779B97F4A7C15 & (1 << 64) - 1
        return (mixed >> 32) % (limit + 1)

    def bad_frame(self, node: int, why: str) -> None:
        """Drop, count, name the sender; say the same thing about the same node only now and then."""
        self.count("rx_bad_frames")
        said = self._complained.get((node, why))
        if said is None or self.now - said >= NOTE_EVERY:
            if len(self._complained) > 1000:
                self._complained.clear()
            self._complained[node, why] = self.now
            self.note("bad_frame", node=node, why=why)

    def _refused(self) -> list[dict[str, Any]]:
        """What other nodes have been told off for lately, the latest first."""
        lately = [(at, key) for key, at in self._complained.items() if self.now - at < 2 * NOTE_EVERY]
        latest = sorted(lately, key=lambda row: (-row[0], row[1]))[:REFUSED]
        return [{"node": node, "why": why} for _, (node, why) in latest]

    # ------------------------------------------------------------ the gate

    def _run(self, now: int) -> None:
        while self._self:
            self._handle(self._self.popleft(), now)

    def _handle(self, frame: bytes, now: int) -> None:
        try:
            header = decode_header(frame, self._tag)
            sender = header.sender
            kind = header.kind
            if kind is FrameType.DATA:
                operational.on_data(self, sender, *decode_data(frame))
            elif kind is FrameType.TOKEN:
                operational.on_token(self, sender, decode_token(frame), now)
            elif kind is FrameType.COMMIT:
                commit.on_commit(self, sender, decode_commit(frame), now)
            elif kind is FrameType.CANCEL:
                operational.on_cancel(self, sender, decode_cancel(frame), now)
            elif kind is FrameType.JOIN:
                self.count("memb_join_rx")
                join = decode_join(frame)
                if admission.acceptable(self, sender, join.hello, join.ring_seq):
                    admission.refuse_younger_self(self, sender, join)
                    gather.on_join(self, sender, join, now)
            elif kind is FrameType.NEWS:
                contacts.on_news(self, sender, decode_news(frame))
            else:
                self.count("memb_merge_detect_rx")
                probe = decode_probe(frame)
                if admission.acceptable(self, sender, probe.hello, probe.ring.seq):
                    merging.on_probe(self, sender, now)
        except FrameError as error:
            self.bad_frame(claimed_sender(frame), str(error))

    # ------------------------------------------------------------ timers

    def _expired(self, timer: Timer, now: int) -> None:
        if timer is Timer.JOIN:
            gather.on_join_interval(self, now)
        elif timer is Timer.CONSENSUS:
            gather.on_consensus_timeout(self, now)
        elif timer is Timer.TOKEN:
            self._token_lost(now)
        elif timer is Timer.RETRANSMIT:
            self._retransmit(now)
        elif timer is Timer.HOLD:
            operational.release_token(self, now)
        elif timer is Timer.DELIVER:
            operational.deliver(self, self.ring, installing=False)
        elif timer is Timer.MERGE:
            merging.probe(self, now)

    def _token_lost(self, now: int) -> None:
        self.count(f"{self.state.value}_token_lost")
        reasons = {
            State.COMMIT: Reason.COMMIT_LOST,
            State.RECOVERY: Reason.RECOVERY_LOST,
            State.OPERATIONAL: Reason.TOKEN_LOST,
        }
        gather.enter(self, reasons[self.state], now)

    def _retransmit(self, now: int) -> None:
        ring = self.active_ring()
        if self.forming is not None and self.forming.commit_frame is not None:
            commit.on_retransmit(self, now)
        elif ring is not None and ring.sent_token is not None:
            self.count("token_retransmit")
            self.send(ring.successor.node, ring.sent_token)
            fast = self.state is State.RECOVERY
            interval = self.timing.join if fast else self.timing.token_retransmit
            self.timers.set(Timer.RETRANSMIT, now + interval)

    def _stop(self, reason: str) -> None:
        self.enter(State.STOPPED)
        self.forming = None
        self._out.append(Stopped(reason))
