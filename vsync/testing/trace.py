"""What happened, in the order in which it happened, as the checkers and the story see it.

Events of the ordered stream (``Sent``, ``Delivered``, ``Viewed``) come out of a core through its one list of
outputs, so a crash between two outputs cuts the trace exactly where it cut the node.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgpack

from vsync.types import Member, View

__all__ = [
    "Crashed",
    "Delivered",
    "Event",
    "Frame",
    "Noted",
    "Place",
    "Sent",
    "Started",
    "Trace",
    "Viewed",
    "Withdrawn",
]


@dataclass(slots=True)
class Started:
    """A process begins; ``kept`` tells whether it found the record of an earlier one."""

    who: Member
    kept: bool
    time: int = 0

    def text(self) -> str:
        return f"start #{self.who.incarnation}" + ("" if self.kept else " (empty disk)")


@dataclass(slots=True)
class Crashed:
    """A process ended: killed, or after a graceful leave."""

    who: Member
    how: str
    time: int = 0

    def text(self) -> str:
        return f"** {self.how} **"


@dataclass(slots=True)
class Sent:
    """A process submitted its message ``number``."""

    who: Member
    number: int
    digest: int
    safe: bool = False
    time: int = 0

    def text(self) -> str:
        return f"send {self.number}" + (" (safe)" if self.safe else "")

    def row(self) -> tuple[Any, ...]:
        return self.number, self.digest, self.safe


@dataclass(slots=True)
class Withdrawn:
    """Message ``number`` was refused at submission and will never be seen."""

    who: Member
    number: int
    time: int = 0

    def text(self) -> str:
        return f"refused {self.number}"


@dataclass(slots=True)
class Delivered:
    """A process delivered message ``number`` of ``origin`` at ``position`` of its current ring.

    ``author`` is the sender named inside the payload: integrity means that it is ``origin``.
    """

    who: Member
    origin: Member
    author: Member
    number: int
    digest: int
    position: int
    installing: bool
    time: int = 0

    def text(self) -> str:
        mark = " (installing)" if self.installing else ""
        place = f"{self.position >> 16}.{self.position & 0xFFFF}"
        return f"deliver {self.origin.node}:{self.number}@{place}{mark}"

    def row(self) -> tuple[Any, ...]:
        return self.origin, self.author, self.number, self.digest, self.position, self.installing


@dataclass(slots=True)
class Place:
    """The group service of a process is about to handle the message at this position of its ring, or a view."""

    who: Member
    position: int
    view: View | None = None
    time: int = 0

    def text(self) -> str:
        if self.view is not None:
            return f"group service: view {self.view.id}"
        return f"group message @{self.position >> 16}.{self.position & 0xFFFF}"


@dataclass(slots=True)
class Viewed:
    """A process was given a configuration."""

    who: Member
    view: View
    time: int = 0

    def text(self) -> str:
        view = self.view
        kind = "trans" if view.transitional else "VIEW"
        members = ",".join(f"{m.node}" for m in view.members)
        return f"{kind} {view.id} {{{members}}}{' primary' if view.primary else ''}"


@dataclass(slots=True)
class Noted:
    """What an engine tells its operator."""

    who: Member
    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    time: int = 0

    def text(self) -> str:
        text = f"{self.name} " + " ".join(f"{k}={v}" for k, v in self.fields.items())
        return text if len(text) <= 120 else text[:117] + "..."


@dataclass(slots=True)
class Frame:
    """A frame left a node. Only in the hash and, on request, in the story."""

    who: Member
    to: tuple[int, ...]
    frame: bytes
    time: int = 0

    def text(self) -> str:
        return f"-> {','.join(map(str, self.to))} {len(self.frame)} B"

    def row(self) -> tuple[Any, ...]:
        return self.to, self.frame


Event = Started | Crashed | Sent | Withdrawn | Delivered | Place | Viewed | Noted | Frame


_MANY = (Frame, Delivered, Sent)  #: nine events of ten: they are hashed as packed rows, which costs less than words


class Trace:
    """Hashes every event, keeps the last ones, and hands each to those who subscribed (the checkers)."""

    def __init__(self, keep: int | None = 4_000) -> None:
        self.events: deque[Event] = deque(maxlen=keep)
        self.count = 0
        self._handlers: dict[type, list[Callable[[Any], None]]] = {}
        self._hash = hashlib.blake2b(digest_size=8)
        self._pack = msgpack.Packer().pack

    def subscribe(self, kind: type, handler: Callable[[Any], None]) -> None:
        """Call ``handler`` with each event of this class, as it is added. It may raise ``Violation``."""
        self._handlers.setdefault(kind, []).append(handler)

    def add(self, event: Event, time: int) -> None:
        """Append ``event`` as of true time ``time``."""
        kind = type(event)
        event.time = time
        self.count += 1
        self.events.append(event)
        if kind in _MANY:
            self._hash.update(self._pack((kind.__name__, time, event.who, event.row())))  # type: ignore[union-attr]
        else:
            self._hash.update(f"{time} {event.who} {event.text()}\n".encode())
        for handler in self._handlers.get(kind, ()):
            handler(event)

    @property
    def hash(self) -> str:
        """Equal for equal runs: what "replays exactly" means."""
        return self._hash.hexdigest()
