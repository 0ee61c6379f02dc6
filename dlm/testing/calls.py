"""What clients called and what they were told: the lines of a history, and the same as operations.

Each client writes a *note* before it calls and another one when it is answered, with times of one clock that
all processes of the host share (``vsync.clock.boot_us``); besides, it notes when it saw that a lock is valid and
when it learnt that one is lost. Notes are lines of JSON, so that a writer who is killed leaves at most half a
line. ``read`` turns the notes of all clients into operations and handles; what makes no sense by itself – an
answer to nothing, two answers – is found there. ``linear`` judges the rest.
"""

from __future__ import annotations

import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from vsync.clock import boot_us

__all__ = [
    "BUSY", "PASSING", "Handle", "History", "Note", "Notebook", "Op", "Problem", "Result", "Verb", "What", "parse",
    "read",
]  # fmt: skip


class What(StrEnum):
    """Kinds of notes. The last three are about the cluster, not about a client."""

    CALL = "call"  #: an operation is about to be made: op, verb, handle, and what the verb takes
    RETURN = "return"  #: it is over: op, result, and what it gave
    SEEN = "seen"  #: the handle was checked at ``t`` and is valid: deadline
    LOST = "lost"  #: the handle was noticed to be lost at ``t``: reason, deadline of its last lease if known
    DIED = "died"  #: the client was killed: it answers for nothing any more
    TROUBLE = "trouble"  #: something is done to the cluster: reason
    CALM = "calm"  #: it is whole again
    LEAVING = "leaving"  #: ``name`` is a node that ends on purpose: it may end leases before their deadline


class Verb(StrEnum):
    """Operations on locks, and on the registers they guard."""

    ACQUIRE = "acquire"  #: name, mode; ``patient`` unless it is a try. Gives mode, fence, deadline
    CONVERT = "convert"  #: mode. Gives mode, fence
    RELEASE = "release"
    OPEN = "open"  #: read a register in order to write it: name, fence. Gives value
    READ = "read"  #: name, fence. Gives value
    WRITE = "write"  #: name, fence, value

    @property
    def of_register(self) -> bool:
        """Whether it is about a register rather than a lock."""
        return self in (Verb.OPEN, Verb.READ, Verb.WRITE)


class Result(StrEnum):
    """How an operation ended."""

    OK = "ok"
    NO = "no"  #: it had no effect; for a release: the lock was lost already
    UNKNOWN = "unknown"  #: it may have had its effect, or may still have it


#: Reasons of a loss that can pass again: the lease had run out and was renewed before anybody else was served.
PASSING = frozenset({"lease"})
BUSY = "busy"  #: reason of a try that was refused because of others


@dataclass(frozen=True, slots=True)
class Note:
    """One line. ``t`` is in µs of the host's boot-time clock; fields without meaning are empty."""

    t: int
    client: str
    what: What
    op: int = 0
    verb: Verb | None = None
    handle: int = 0
    name: str = ""
    mode: str = ""
    node: str = ""
    patient: bool = False
    result: Result | None = None
    fence: int = 0
    deadline: int = 0
    value: int = 0
    reason: str = ""

    def line(self) -> bytes:
        """As JSON, without the empty fields."""
        row = {key: value for key, value in asdict(self).items() if value or key == "t"}
        return json.dumps(row, separators=(",", ":")).encode() + b"\n"


_ENUMS: dict[str, type[StrEnum]] = {"what": What, "verb": Verb, "result": Result}


def parse(data: bytes) -> Iterator[Note]:
    """The notes of a file; a last line without its end is ignored. Raises ``ValueError`` for what is none."""
    *lines, _ = data.split(b"\n")
    for line in lines:
        row: dict[str, Any] = json.loads(line)
        for key, kind in _ENUMS.items():
            if key in row:
                row[key] = kind(row[key])
        yield Note(**row)


class Notebook:
    """The file of one client: appended to, line by line, in the order of its times. Thread-safe."""

    def __init__(self, client: str, path: Path) -> None:
        self.client = client
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._guard = threading.Lock()

    def write(self, what: What, t: int | None = None, **fields: Any) -> None:
        """Note something, by default as of now."""
        with self._guard:
            os.write(self._fd, Note(boot_us() if t is None else t, self.client, what, **fields).line())

    def close(self) -> None:
        """Nothing more is written."""
        os.close(self._fd)


@dataclass(frozen=True, slots=True)
class Problem:
    """A broken rule; ``text`` says who, where and when."""

    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


@dataclass(slots=True)
class Op:
    """One operation. ``returned`` is ``None`` if no answer was noted; ``result`` is then UNKNOWN."""

    client: str
    number: int
    verb: Verb
    handle: int
    name: str
    mode: str
    node: str
    called: int
    patient: bool = False
    returned: int | None = None
    result: Result = Result.UNKNOWN
    fence: int = 0
    deadline: int = 0
    value: int = 0
    reason: str = ""

    def __str__(self) -> str:
        end = "no answer" if self.returned is None else f"{self.result} at {self.returned / 1e6:.6f}"
        what = f"{self.verb} {self.mode}".strip()
        return f"{self.client} op {self.number}, {what} of {self.name}, called at {self.called / 1e6:.6f}, {end}"


@dataclass(slots=True)
class Handle:
    """What became of one request for a lock: the acquire, conversions in order, the release, and all notices."""

    acquire: Op
    converts: list[Op] = field(default_factory=list)
    release: Op | None = None
    notices: list[Note] = field(default_factory=list)  #: SEEN and LOST, in the client's order

    def ops(self) -> Iterator[Op]:
        """All operations, in the order of their calls."""
        yield self.acquire
        yield from self.converts
        if self.release is not None:
            yield self.release


@dataclass(slots=True)
class History:
    """All that happened, by the clients' own accounts. ``problems``: what makes no sense by itself."""

    handles: list[Handle] = field(default_factory=list)
    registers: list[Op] = field(default_factory=list)
    deaths: dict[str, int] = field(default_factory=dict)  #: clients that were killed, and when
    calm: list[tuple[int, int]] = field(default_factory=list)  #: from when to when nothing was done to the cluster
    leaves: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))  #: by node, when it began to
    problems: list[Problem] = field(default_factory=list)
    end: int = 0  #: time of the last note

    def add(self, rule: str, text: str) -> None:
        """Note a broken rule."""
        self.problems.append(Problem(rule, text))


def read(notes: Iterable[Note]) -> History:
    """Make operations of the notes of all clients. Those of one client must come in its order."""
    history = History()
    clients: dict[str, list[Note]] = defaultdict(list)
    marks: list[Note] = []
    for note in notes:
        history.end = max(history.end, note.t)
        if note.what is What.DIED:
            history.deaths[note.client] = note.t
        elif note.what in (What.TROUBLE, What.CALM, What.LEAVING):
            marks.append(note)
        else:
            clients[note.client].append(note)
    _read_marks(history, sorted(marks, key=lambda note: note.t))
    for client in sorted(clients):
        _Client(history, client).read(clients[client])
    return history


def _read_marks(history: History, marks: list[Note]) -> None:
    since: int | None = None
    for note in marks:
        if note.what is What.LEAVING:
            history.leaves[note.name].append(note.t)
        elif note.what is What.CALM:
            since = note.t if since is None else since
        elif since is not None:
            history.calm.append((since, note.t))
            since = None
    if since is not None:
        history.calm.append((since, history.end))


class _Client:
    """Reads the notes of one client."""

    def __init__(self, history: History, name: str) -> None:
        self.history = history
        self.name = name
        self.ops: dict[int, Op] = {}
        self.handles: dict[int, Handle] = {}
        self.last = 0

    def read(self, notes: Iterable[Note]) -> None:
        for note in notes:
            if note.t < self.last and note.what is not What.SEEN:  # what was seen is dated back to before the look
                self._add("time", f"{note.what} at {note.t}, after something at {self.last}")
            self.last = max(self.last, note.t)
            if note.what is What.CALL:
                self._call(note)
            elif note.what is What.RETURN:
                self._return(note)
            else:
                self._notice(note)
        self.history.handles.extend(self.handles.values())
        if self.name not in self.history.deaths:
            for op in self.ops.values():
                if op.returned is None:
                    self._add("answer", f"{op}: the client lives and was never answered")

    def _call(self, note: Note) -> None:
        if note.verb is None or note.op in self.ops:
            self._add("invocation", f"op {note.op} is called twice, or is no operation")
            return
        op = Op(
            self.name, note.op, note.verb, note.handle, note.name, note.mode, note.node, note.t, note.patient,
            fence=note.fence, value=note.value,
        )  # fmt: skip
        self.ops[note.op] = op
        if op.verb.of_register:
            self.history.registers.append(op)
        elif op.verb is Verb.ACQUIRE:
            if op.handle in self.handles:
                self._add("invocation", f"{op}: handle {op.handle} is asked for twice")
            self.handles[op.handle] = Handle(op)
        else:
            self._of_handle(op)

    def _of_handle(self, op: Op) -> None:
        """A conversion or the release: of a lock that was granted, one at a time, and nothing after the release."""
        handle = self.handles.get(op.handle)
        if handle is None or handle.acquire.result is not Result.OK:
            self._add("sequence", f"{op}: handle {op.handle} was never granted")
            return
        op.name, op.node = handle.acquire.name, handle.acquire.node
        if handle.release is not None:
            self._add("sequence", f"{op}: it has been released")
        elif op.verb is Verb.RELEASE:
            handle.release = op
        else:
            if handle.converts and handle.converts[-1].returned is None:
                self._add("sequence", f"{op}: another conversion is on its way")
            handle.converts.append(op)

    def _return(self, note: Note) -> None:
        op = self.ops.get(note.op)
        if op is None:
            self._add("invocation", f"an answer to op {note.op}, which was never called: fence {note.fence}")
            return
        if op.returned is not None:
            self._add("once", f"{op}: answered again, with {note.result}")
            return
        if note.verb not in (None, op.verb) or (note.name and note.name != op.name):
            self._add("invocation", f"{op}: the answer is to {note.verb} of {note.name}")
        op.returned, op.result = note.t, note.result or Result.UNKNOWN
        op.reason = note.reason
        if op.verb in (Verb.ACQUIRE, Verb.CONVERT) and op.result is Result.OK:
            if note.mode and note.mode != op.mode:
                self._add("invocation", f"{op}: it was given {note.mode}, which nobody asked for")
            op.fence, op.deadline = note.fence, note.deadline
        if op.verb in (Verb.OPEN, Verb.READ):
            op.value = note.value

    def _notice(self, note: Note) -> None:
        handle = self.handles.get(note.handle)
        if handle is None or handle.acquire.result is not Result.OK:
            self._add("sequence", f"handle {note.handle} is {note.what}, but was never granted")
        elif handle.release is not None and note.t >= handle.release.called:
            self._add("sequence", f"handle {note.handle} is {note.what} at {note.t}, after its release")
        else:
            handle.notices.append(note)

    def _add(self, rule: str, text: str) -> None:
        self.history.add(rule, text if text.startswith(self.name) else f"{self.name}: {text}")
