"""The flight recorder: what went into the engine lately, so that a failure of a live node can be run again.

::

    Core ──▶ RecordedEngine ──▶ Engine        inputs, what the upper layers announced, a digest of the outputs
                   │
                Recorder     the last ``limit`` bytes of them, in segments; each begins with a checkpoint
                   │ take()
               Recording ──▶ chunks() ──▶ a file ──▶ Recording.read() ──▶ vsync.testing.replay

The engine is deterministic, so its inputs are the whole truth: ``replay`` puts them into an engine restored from
the first checkpoint and must see the same outputs. A segment is a quarter of the limit; the oldest is dropped as
a whole. A checkpoint of an engine that holds more messages than that is put off until it holds fewer.

File format, version 1: ``MAGIC``, version as u16, then msgpack objects – a head (a map), records (lists, first
element one of the constants below) and ``[END, number of records]`` – and 16 bytes BLAKE2b of all before. Messages
are in it in the clear; keys are not.

Pure. ``Recorder`` is fed and taken from by the node's thread; a ``Recording`` may be encoded by any thread.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any
from zlib import crc32

import msgpack

from vsync.engine import Deliver, Engine, Note, Persist, Send, snapshot
from vsync.engine.engine import Upper
from vsync.engine.outputs import Output
from vsync.errors import RecordingError
from vsync.roster import Roster
from vsync.types import ClusterConfig, Peer, QuorumConfig, RingId, Timing

__all__ = ["INPUTS", "MAGIC", "RecordedEngine", "Recorder", "Recording", "digest"]

MAGIC = b"vsyncrec"
VERSION = 1
DIGEST_BYTES = 16
HEAD = 128  #: bytes of a frame that count in the digest of outputs: its header and what tells it from others
RECORD_BYTES = 200  #: what a record costs beside the bytes it refers to
SEGMENTS = 4

# Records; the first ones are inputs, with their arguments. Times are µs of the node's boot-time clock.
RECEIVE, FIRE, SUBMIT, START, PEER_GONE, LEAVE, REFORM, MARK, SETTLED, ENROLL = range(10)  #: (kind, now, …)
UPPER = 10  #: (kind, bytes that the upper layers announced during the input before)
OUT = 11  #: (kind, number of outputs taken, their digest)
NOTE = 12  #: (kind, now, name, fields): what a layer above told operators; not replayed
CHECKPOINT = 13  #: (kind, state)
END = 14
HURRY = 15  #: an input

#: Inputs by name, as ``Engine`` has them. (Every public method of Engine that takes ``now`` must be here: a test.)
INPUTS = {
    "receive": RECEIVE, "fire": FIRE, "submit": SUBMIT, "start": START, "peer_gone": PEER_GONE, "leave": LEAVE,
    "reform": REFORM, "mark": MARK, "settled": SETTLED, "enroll": ENROLL, "hurry": HURRY,
}  # fmt: skip


class RecordedEngine(Engine):
    """An engine whose inputs and outputs are recorded. Takes the arguments of ``Engine`` behind its recorder."""

    def __init__(
        self, recorder: Recorder, config: ClusterConfig, incarnation: int, upper: Upper, *more: Any
    ) -> None:
        def announce(*case: Any) -> bytes:
            raw: bytes = upper(*case)
            recorder.add((UPPER, raw), len(raw))
            return raw

        super().__init__(config, incarnation, announce, *more)
        self.recorder = recorder
        recorder.begin(self)

    def receive(self, frame: bytes, now: int) -> None:
        recorder = self.recorder
        if recorder.used > recorder.full:
            recorder.checkpoint(self)
        recorder.records.append((RECEIVE, now, frame))
        recorder.used += len(frame) + RECORD_BYTES
        Engine.receive(self, frame, now)

    def fire(self, now: int) -> None:
        self.recorder.input(self, (FIRE, now))
        super().fire(now)

    def submit(self, payload: bytes, now: int, urgent: bool = False, safe: bool = False) -> None:
        self.recorder.input(self, (SUBMIT, now, payload, urgent, safe), len(payload))
        super().submit(payload, now, urgent, safe)

    def start(self, now: int) -> None:
        self.recorder.input(self, (START, now))
        super().start(now)

    def peer_gone(self, node: int, evidence: str, now: int) -> None:
        self.recorder.input(self, (PEER_GONE, now, node, evidence))
        super().peer_gone(node, evidence, now)

    def leave(self, now: int) -> None:
        self.recorder.input(self, (LEAVE, now))
        super().leave(now)

    def reform(self, reason: str, now: int) -> None:
        self.recorder.input(self, (REFORM, now, reason))
        super().reform(reason, now)

    def hurry(self, now: int) -> None:
        self.recorder.input(self, (HURRY, now))
        super().hurry(now)

    def mark(
        self, view: RingId, lineage: int, base: tuple[tuple[int, int], ...], roster: Roster | None, now: int
    ) -> Persist:
        self.recorder.input(self, (MARK, now, tuple(view), lineage, base, roster and roster.packed))
        return super().mark(view, lineage, base, roster, now)

    def enroll(self, roster: Roster, now: int) -> Persist:
        self.recorder.input(self, (ENROLL, now, roster.packed))
        return super().enroll(roster, now)

    def settled(self, view: RingId, now: int) -> Persist:
        self.recorder.input(self, (SETTLED, now, tuple(view)))
        return super().settled(view, now)

    def take_outputs(self) -> list[Output]:
        out, self._out = self._out, []  # not by way of ``super``: several times a frame
        if out:
            recorder = self.recorder
            recorder.records.append((OUT, len(out), digest(out)))
            recorder.used += RECORD_BYTES
        return out


@dataclass(slots=True)
class _Segment:
    checkpoint: dict[str, Any]
    held: int  #: bytes of messages that the checkpoint keeps
    records: list[tuple[Any, ...]] = field(default_factory=list)
    used: int = 0


class Recorder:
    """Keeps about the last ``limit`` bytes of what happened."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.full = limit // SEGMENTS  #: bytes after which a segment ends
        self.records: list[tuple[Any, ...]] = []  #: of the youngest segment
        self.used = 0  #: bytes of the youngest segment
        self.postponed = 0  #: checkpoints put off, as the engine held too much
        self._segments: deque[_Segment] = deque()
        self._engine: Engine | None = None

    # -- fed by the engine and the core

    def begin(self, engine: Engine) -> None:
        """The engine has been made: the first checkpoint."""
        self._engine = engine
        self.checkpoint(engine)

    def input(self, engine: Engine, record: tuple[Any, ...], size: int = 0) -> None:
        """An input is about to be handled."""
        if self.used > self.full:
            self.checkpoint(engine)
        self.add(record, size)

    def add(self, record: tuple[Any, ...], size: int = 0) -> None:
        """One more record, which refers to ``size`` bytes."""
        self.records.append(record)
        self.used += size + RECORD_BYTES

    def note(self, name: str, fields: Mapping[str, Any], now: int) -> None:
        """A layer above the engine tells operators something."""
        self.add((NOTE, now, name, dict(fields)), 200)

    def checkpoint(self, engine: Engine) -> None:
        """Begin a new segment, and drop the oldest ones beyond the limit."""
        held = snapshot.held_bytes(engine)
        if held > self.full and self.used < self.limit:
            self.postponed += 1
            self.full = min(self.limit, self.used + self.limit // SEGMENTS // 4)
            return
        self.full = self.limit // SEGMENTS
        if self._segments:
            self._segments[-1].used = self.used
        self._segments.append(_Segment(snapshot.capture(engine), held))
        self.records = self._segments[-1].records
        self.used = 0
        while len(self._segments) > 1 and sum(s.used + s.held for s in self._segments) > self.limit - self.full:
            self._segments.popleft()

    # -- taken by the node

    def take(self) -> Recording:
        """All that is kept, independent of what is recorded from now on. Cheap; the work is in ``chunks``."""
        assert self._engine is not None
        records: list[tuple[Any, ...]] = []
        for segment in self._segments:
            records.append((CHECKPOINT, segment.checkpoint))
            records += segment.records
        engine = self._engine
        head = {
            "cluster": engine.config.cluster,
            "node": engine.me.node,
            "name": engine.config.name(engine.me.node),
            "incarnation": engine.me.incarnation,
            "config": _config(engine.config),
        }
        return Recording(head, records)


@dataclass(slots=True)
class Recording:
    """A dump: ``head`` says whose it is, ``records`` begin with a checkpoint."""

    head: dict[str, Any]
    records: Sequence[tuple[Any, ...]]

    def chunks(self, **about: Any) -> Iterator[bytes]:
        """The file, piece by piece. ``about`` goes into the head: why and when it was made."""
        checksum = hashlib.blake2b(digest_size=DIGEST_BYTES)
        for chunk in self._encoded({**self.head, **about}):
            checksum.update(chunk)
            yield chunk
        yield checksum.digest()

    def _encoded(self, head: dict[str, Any]) -> Iterator[bytes]:
        packer = msgpack.Packer(default=str)
        yield MAGIC + VERSION.to_bytes(2, "big")
        yield packer.pack(head)
        for record in self.records:
            if record[0] == CHECKPOINT:
                record = (CHECKPOINT, snapshot.encode(record[1]))
            yield packer.pack(record)
        yield packer.pack((END, len(self.records)))

    @classmethod
    def read(cls, data: bytes, where: str) -> Recording:
        """Decode a file. Raises ``RecordingError``, which names ``where`` and what is wrong."""
        start = len(MAGIC) + 2
        if not data.startswith(MAGIC):
            raise RecordingError(f"{where}: is not a recording of the flight recorder")
        version = int.from_bytes(data[len(MAGIC) : start], "big")
        if version != VERSION:
            raise RecordingError(f"{where}: is of format {version}, this release reads {VERSION}")
        body, checksum = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
        if hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest() != checksum:
            raise RecordingError(f"{where}: is damaged or was changed (the checksum is wrong); take another dump")
        try:
            return cls._decoded(memoryview(body)[start:])
        except Exception as e:
            raise RecordingError(f"{where}: has an unknown form: {e!r}") from e

    @classmethod
    def _decoded(cls, body: memoryview) -> Recording:
        unpacker = msgpack.Unpacker(strict_map_key=False, max_buffer_size=0)
        unpacker.feed(body)
        head, *records, end = unpacker
        if end != [END, len(records)] or records[0][0] != CHECKPOINT:
            raise ValueError("it does not begin with a checkpoint and end with its end")
        return cls(head, [tuple(record) for record in records])

    @property
    def config(self) -> ClusterConfig:
        """The configuration the engine had; what does not matter to an engine has its default."""
        raw = dict(self.head["config"])
        peers = tuple(Peer(**{**peer, "addresses": tuple(peer["addresses"])}) for peer in raw.pop("peers"))
        timing, quorum = Timing(**raw["timing"]), QuorumConfig(**raw["quorum"])
        return ClusterConfig(**{**raw, "peers": peers, "timing": timing, "quorum": quorum})


def digest(outputs: Iterable[Output]) -> int:
    """A number that tells one list of outputs from another. Of frames only the first ``HEAD`` bytes count."""
    code = 0
    for output in outputs:
        if isinstance(output, Send):
            frame = output.frame
            code = crc32(frame[:HEAD], code * 31 + len(frame) + output.to[0] & 0xFFFFFFFF)
        elif isinstance(output, Deliver):
            numbers = output.seq + (output.origin.node << 16) + (len(output.messages) << 8) + output.installing
            code = code * 31 + numbers & 0xFFFFFFFF
        elif isinstance(output, Persist):
            code = crc32(output.record, code)
        elif isinstance(output, Note):
            code = crc32(repr((output.name, output.fields)).encode(), code)
        else:
            code = crc32(repr(output).encode(), code)
    return code


#: Of the configuration: what an engine looks at. Never anything secret.
_SIMPLE = (str, int, bool, float)


def _config(config: ClusterConfig) -> dict[str, Any]:
    plain = {f.name: getattr(config, f.name) for f in fields(config)}
    kept = {name: value for name, value in plain.items() if type(value) in _SIMPLE and "key" not in name}
    peers = [{f.name: getattr(p, f.name) for f in fields(Peer)} for p in config.peers]
    timing = {f.name: getattr(config.timing, f.name) for f in fields(Timing)}
    quorum = {f.name: getattr(config.quorum, f.name) for f in fields(QuorumConfig)}
    return {**kept, "peers": peers, "timing": timing, "quorum": quorum}
