"""What people and programs are shown of the past of a name: events, and who held it at a position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dlm.info import Holder, Mode
from dlm.text import name_text

__all__ = ["HeldAt", "LockEvent", "NameHistory"]

_MODES = ("mode", "asked", "before")
_COPIED = ("position", "own", "space", "name", "what", "node", "session", "code")
_OF_NAMES = ("private", "handover", "shared", "free")


@dataclass(frozen=True, slots=True)
class LockEvent:
    """One event.

    ``what`` of a lock: ``granted``, ``converted``, ``waiting``, ``refused``, ``cancelled``, ``released``, ``lost``
    (its node has left), ``orphaned``; of the name itself: ``private``, ``handover``, ``shared``, ``free``, and
    then ``node`` is its owner, if it has one. ``code`` says why. ``mode`` and ``before`` are what the lock holds
    after and before the event.

    ``position`` is that of the ordered message or view that did it, the same at all nodes; with ``own`` this node
    has decided alone, some time after that position. ``ago_s``: seconds, by the clock of the node that tells.
    """

    position: int
    own: bool
    ago_s: float
    space: str
    name: bytes
    what: str
    node: int
    session: int
    handle: int
    pid: int
    program: str
    mode: Mode | None
    asked: Mode | None
    before: Mode | None
    fence: int
    code: str
    holders: tuple[Holder, ...] | None

    @classmethod
    def from_row(cls, row: Mapping[str, Any], now_us: int) -> LockEvent:
        """From one row of the daemon's answer to ``history``."""
        modes: dict[str, Any] = {word: None if row[word] is None else Mode[row[word]] for word in _MODES}
        copied = {word: row[word] for word in _COPIED}
        people = row["holders"]
        return cls(
            **copied,
            **modes,
            ago_s=(now_us - row["at_us"]) / 1e6,
            handle=row["h"],
            pid=row["pid"],
            program=row["program"],
            fence=row["fence"] or row["before_fence"],
            holders=None if people is None else tuple(map(Holder.from_row, people)),
        )

    @property
    def of_name(self) -> bool:
        """Whether it is about the name, and not about one lock."""
        return self.what in _OF_NAMES

    @property
    def remark(self) -> str:
        """What is not in a column of its own."""
        if self.of_name:
            if self.holders is None:
                return "contents not known here"
            return " ".join(f"{one}:{one.mode.name}" for one in self.holders if one.mode is not None)
        if self.what == "converted" and self.before is not None:
            return f"from {self.before.name}{f', {self.code}' if self.code else ''}"
        return self.code

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        row = {**asdict(self), "name": name_text(self.name)}
        row.update({word: None if row[word] is None else row[word].name for word in _MODES})
        row["holders"] = None if self.holders is None else [one.to_json() for one in self.holders]
        return row


@dataclass(frozen=True, slots=True)
class NameHistory:
    """The events of a name that one node still knows, oldest first; iterates over them.

    ``position`` is the table's now. Before ``since`` nothing is known, and of what the node has decided alone
    nothing before ``own_since``.
    """

    position: int
    since: int
    own_since: int
    events: tuple[LockEvent, ...]

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any]) -> NameHistory:
        """From the daemon's answer."""
        events = tuple(LockEvent.from_row(row, answer["now_us"]) for row in answer["events"])
        return cls(answer["position"], answer["since"], answer["own_since"], events)

    def __iter__(self) -> Iterator[LockEvent]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        known = {"position": self.position, "since": self.since, "own_since": self.own_since}
        return {**known, "events": [event.to_json() for event in self.events]}


@dataclass(frozen=True, slots=True)
class HeldAt:
    """Who held a name after the event at ``position`` and before the next.

    ``state``: ``free``, ``private``, ``handover`` or ``shared``. ``holders``: ``None`` if only another node knew,
    or this one does not know any more.
    """

    position: int
    state: str
    owner: int | None
    holders: tuple[Holder, ...] | None

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any]) -> HeldAt:
        """From the daemon's answer."""
        people = answer["holders"]
        holders = None if people is None else tuple(map(Holder.from_row, people))
        return cls(answer["position"], answer["state"], answer["owner"], holders)

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        holders = None if self.holders is None else [one.to_json() for one in self.holders]
        return {"position": self.position, "state": self.state, "owner": self.owner, "holders": holders}
