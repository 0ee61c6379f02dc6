"""``python -m vsync.testing --replay FILE…``: run again what the flight recorder kept of live nodes.

Of each file an engine is restored from the first checkpoint and given the recorded inputs. It must do what the live
one did: its outputs are compared with the recorded digests, its state with the later checkpoints. Then the nodes'
views and deliveries are judged by the rules that the simulator uses, where a recording that begins in the middle
allows it: all of ``ViewRules``, and of messages that a place in the agreed order holds the same at all nodes
(EVS-E19), that none is left out between two others (EVS-E16), and that members who go together have delivered the
same (EVS-E13). The story merges the nodes by time.

A developer's tool. A recording is data, nothing in it is executed, but it holds messages in the clear.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from zlib import crc32

from vsync import quorum
from vsync.engine import Deliver, Install, Note, snapshot
from vsync.engine.outputs import Configuration
from vsync.errors import Backpressure, MessageTooLarge, RecordingError
from vsync.recorder import (
    CHECKPOINT,
    ENROLL,
    INPUTS,
    MARK,
    NOTE,
    OUT,
    RECEIVE,
    SETTLED,
    SUBMIT,
    UPPER,
    Recording,
    digest,
)
from vsync.roster import Roster
from vsync.testing.evs_views import ViewRules
from vsync.testing.story import story
from vsync.testing.trace import Delivered, Event, Noted, Started, Trace, Viewed
from vsync.testing.violation import Violation
from vsync.types import NO_RING, Member, RingId, View, position
from vsync.upper import decode_upper

__all__ = ["Divergence", "Rerun", "judge", "main", "rerun"]

_NAMES = {kind: name for name, kind in INPUTS.items()}


class Divergence(Exception):
    """The engine did not do again what it did live: it is not deterministic, or another release made the file."""


@dataclass(slots=True)
class Rerun:
    """One node's recording, run again. Times of events are the node's own clock."""

    me: Member
    name: str
    offset: int  #: µs to add to a time to get wall-clock time
    members: tuple[Member, ...] = ()  #: of the ring that the first checkpoint was in
    ring: RingId = NO_RING
    delivered: int = 0  #: packets of that ring that the first checkpoint had delivered
    inputs: int = 0
    checkpoints: int = 0
    failure: str = ""  #: the exception that the engine raised, if it did, at the end as it did live
    events: list[Event] = field(default_factory=list)


def rerun(recording: Recording, where: str) -> Rerun:
    """Run it again. Raises ``Divergence``, and ``RecordingError`` for a file this release cannot run."""
    return _Runner(recording, where).run()


class _Runner:
    def __init__(self, recording: Recording, where: str) -> None:
        self.where = where
        self.records = recording.records
        self.at = 0  # index of the record that is being run
        self.announced = 0  # index of the last announcement that was used
        self.now = 0
        head = recording.head
        me = Member(head["node"], head["incarnation"])
        self.result = Rerun(me, head["name"], head.get("wall_us", 0) - head.get("boot_us", 0))
        try:
            state = snapshot.decode(self.records[0][1])
            self.engine = snapshot.restore(state, recording.config, self._upper, decode_upper)
        except (ValueError, TypeError, KeyError) as e:
            raise RecordingError(f"{where}: this release cannot run it: {e}") from e
        ring = self.engine.ring
        self.result.members, self.result.ring, self.result.delivered = ring.members, ring.id, ring.delivered

    def run(self) -> Rerun:
        last = len(self.records) - 1
        for self.at in range(1, last + 1):
            record = self.records[self.at]
            kind = record[0]
            if kind in _NAMES:
                self._input(record)
            elif kind == OUT:
                self._compare(self.engine.take_outputs(), record)
            elif kind == CHECKPOINT:
                self._check_state(record)
            elif kind == NOTE:
                self.result.events.append(Noted(self.result.me, record[2], record[3], record[1]))
        return self.result

    def _input(self, record: tuple[Any, ...]) -> None:
        self.now, arguments = record[1], record[2:]
        self.result.inputs += 1
        method = getattr(self.engine, _NAMES[record[0]])
        try:
            if record[0] in (RECEIVE, SUBMIT):
                method(arguments[0], self.now, *arguments[1:])
            elif record[0] == MARK:
                *known, packed = arguments[1:]
                method(RingId(*arguments[0]), *known, packed and Roster.unpack(packed), self.now)
            elif record[0] == SETTLED:
                method(RingId(*arguments[0]), *arguments[1:], self.now)
            elif record[0] == ENROLL:
                method(Roster.unpack(arguments[0]), self.now)
            else:
                method(*arguments, self.now)
        except (Backpressure, MessageTooLarge):
            pass  # refused, as it was live
        except Exception as e:  # noqa: BLE001 - what it raised live it raises again: the end of the recording
            self.result.failure = f"{type(e).__name__}: {e}"

    def _upper(self, *case: Any) -> bytes:
        """What the upper layers announced during this input: the records behind it say so."""
        self.announced = max(self.at, self.announced) + 1
        if self.announced >= len(self.records) or self.records[self.announced][0] != UPPER:
            self._diverge("the engine asks for the announcements, live it did not")
        raw: bytes = self.records[self.announced][1]
        return raw

    def _compare(self, made: Sequence[Any], record: tuple[Any, ...]) -> None:
        if (len(made), digest(made)) != (record[1], record[2]):
            shown = "; ".join(str(output)[:120] for output in made) or "nothing"
            self._diverge(f"{record[1]} outputs with digest {record[2]:08x} live, now {len(made)}: {shown}")
        for output in made:
            if isinstance(output, Install):
                self._view(output.configuration)
            elif isinstance(output, Deliver):
                self._deliver(output)
            elif isinstance(output, Note):
                self.result.events.append(Noted(self.result.me, output.name, output.fields, self.now))

    def _check_state(self, record: tuple[Any, ...]) -> None:
        self.result.checkpoints += 1
        state = snapshot.encode(snapshot.capture(self.engine))
        if state != record[1]:
            differing = [str(a[0]) for a, b in zip(state[1], record[1][1], strict=False) if a != b]
            self._diverge(f"another state than the checkpoint there: {', '.join(differing) or 'attributes'}")

    def _view(self, c: Configuration) -> None:
        primary = quorum.judge(c.entries).primary
        view = View(c.id, c.members, c.joined, c.left, primary, c.transitional, c.reason, c.entries, c.previous)
        self.result.events.append(Viewed(self.result.me, view, self.now))

    def _deliver(self, packet: Deliver) -> None:
        for index, message in enumerate(packet.messages):
            me, origin, place = self.result.me, packet.origin, position(packet.seq, index)
            event = Delivered(me, origin, origin, place, crc32(message), place, packet.installing, self.now)
            self.result.events.append(event)

    def _diverge(self, text: str) -> NoReturn:
        raise Divergence(f"{self.where}: input {self.result.inputs} at {self.now} µs: {text}")


# ---------------------------------------------------------------- judging


def judge(runs: Iterable[Rerun]) -> list[Violation]:
    """The rules, each node's way first, then the nodes against each other. At most one violation of each part."""
    found = []
    runs = list(runs)
    for part in (_judge_views, _judge_messages):
        try:
            part(runs)
        except Violation as violation:
            found.append(violation)
    return found


def _judge_views(runs: Sequence[Rerun]) -> None:
    rules = ViewRules()
    for run in sorted(runs, key=lambda r: r.me):
        rules.on_started(Started(run.me, False))  # whether its disk was kept is not in the file: E7 within a life
        if run.ring.seq:
            rules.processes[run.me].regular = _view_before(run)
        for event in run.events:
            if isinstance(event, Viewed):
                rules.on_viewed(event)


def _view_before(run: Rerun) -> View:
    """The ring that the recording begins in, as far as the rules for views look at it."""
    return View(run.ring, run.members, (), (), False, False, "before the recording", {})


@dataclass(slots=True)
class _Walk:
    """What one node delivered in one ring, and where it went from there."""

    who: Member
    since: int  #: positions from here on are known
    places: list[int] = field(default_factory=list)
    regular: int | None = None  #: how many of them before the transitional view
    next_ring: RingId | None = None


def _judge_messages(runs: Sequence[Rerun]) -> None:
    held: dict[tuple[RingId, int], tuple[Delivered, Member]] = {}
    walks: dict[RingId, list[_Walk]] = {}
    for run in runs:
        for walk, ring in _walks(run, held):
            walks.setdefault(ring, []).append(walk)
    for ring, there in sorted(walks.items()):
        for walk in there[1:]:
            _compare_walks(ring, there[0], walk)


def _walks(run: Rerun, held: dict[tuple[RingId, int], tuple[Delivered, Member]]) -> list[tuple[_Walk, RingId]]:
    """Each ring of a node, with EVS-E19 checked on the way."""
    ring, walk = run.ring, _Walk(run.me, position(run.delivered + 1, 0))
    done = [(walk, ring)]
    for event in run.events:
        if isinstance(event, Delivered):
            known, other = held.setdefault((ring, event.position), (event, run.me))
            if (known.origin, known.digest) != (event.origin, event.digest):
                raise Violation("EVS-E19", f"{event.text()} at node {run.me.node}, {known.text()} at {other.node}")
            if walk.places and event.position <= walk.places[-1]:
                raise Violation("EVS-E19", f"node {run.me.node}: {event.text()} out of order")
            walk.places.append(event.position)
        elif isinstance(event, Viewed) and event.view.transitional:
            walk.regular = len(walk.places)
        elif isinstance(event, Viewed):
            walk.next_ring = ring = event.view.id
            walk = _Walk(run.me, 0)
            done.append((walk, ring))
    return done


def _compare_walks(ring: RingId, one: _Walk, other: _Walk) -> None:
    """EVS-E13: who goes together delivered the same. E16: others, up to their transitional views, did too."""
    since = max(one.since, other.since)
    if one.next_ring is not None and one.next_ring == other.next_ring:
        mine, theirs = ([p for p in walk.places if p >= since] for walk in (one, other))
        if mine != theirs:
            raise Violation(
                "EVS-E13",
                f"nodes {one.who.node} and {other.who.node} go from {ring} to {one.next_ring} together, "
                "but delivered not the same",
            )
    else:
        mine, theirs = ([p for p in walk.places[: walk.regular] if p >= since] for walk in (one, other))
        common = min(len(mine), len(theirs))
        if mine[:common] != theirs[:common]:
            raise Violation(
                "EVS-E16", f"nodes {one.who.node} and {other.who.node} delivered not the same in {ring}"
            )


# ---------------------------------------------------------------- the command


def main(files: Sequence[str], lines: int = 60) -> int:
    """Run the files again and tell the story. Returns 0 if all is as it was live and no rule is broken, else 1."""
    runs: list[Rerun] = []
    try:
        for file in files:
            recording = Recording.read(_bytes(file), file)
            run = rerun(recording, file)
            runs.append(run)
            print(_line(recording, run, file))
    except (RecordingError, Divergence) as e:
        print(f"DIVERGED {e}" if isinstance(e, Divergence) else f"vsync.testing: {e}", flush=True)
        return 1
    print("\n".join(_story(runs, lines)))
    broken = judge(runs)
    for violation in broken:
        print(f"BROKEN {violation}")
    if not broken:
        print("every output as it was live; no rule is broken")
    return 1 if broken else 0


def _bytes(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as e:
        raise RecordingError(f"{file}: cannot be read: {e.strerror}") from e


def _line(recording: Recording, run: Rerun, file: str) -> str:
    views = sum(isinstance(e, Viewed) and not e.view.transitional for e in run.events)
    messages = sum(isinstance(e, Delivered) for e in run.events)
    text = f"{file}: node {run.name} ({run.me.node}) of {recording.head['cluster']}, {run.inputs} inputs, "
    text += f"{run.checkpoints + 1} checkpoints, {messages} messages, {views} views"
    if "reason" in recording.head:
        text += f"; dumped: {recording.head['reason']}"
    return text + (f"; the engine raised {run.failure}" if run.failure else "")


def _story(runs: Sequence[Rerun], lines: int) -> list[str]:
    """All nodes in one column each, by wall-clock time in ms since the first event."""
    events = sorted(((e.time + run.offset, e) for run in runs for e in run.events), key=lambda pair: pair[0])
    trace = Trace(keep=None)
    for time, event in events:
        trace.add(event, time - events[0][0])
    return story(trace, max((run.me.node for run in runs), default=1), lines)
