"""What the engine wants done, in **one ordered list**.

Where ``Install`` stands between the ``Deliver``s *is* the promise of virtual synchrony, so the list must be
carried out from front to back. A crash may fall between any two outputs; a ``Persist`` must be on disk before
anything behind it leaves the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vsync.types import Entry, Member, Peer, RingId

__all__ = ["Configuration", "Deliver", "Install", "Note", "Output", "Persist", "Rewire", "Send", "Stopped", "Tell"]


@dataclass(slots=True)
class Send:
    """Send ``frame`` to these nodes (never to this one). Loss, duplication and reordering are allowed."""

    to: tuple[int, ...]
    frame: bytes


@dataclass(slots=True)
class Rewire:
    """From now on these are the nodes to talk to, this one included; links to others can go."""

    peers: tuple[Peer, ...]


@dataclass(slots=True)
class Tell:
    """Send ``frame``, once, to a node that is none of those to talk to, at the address that it gave."""

    node: int
    address: str
    frame: bytes


@dataclass(slots=True)
class Persist:
    """Put ``record`` in stable storage, replacing the former one, before going on."""

    record: bytes


@dataclass(slots=True)
class Deliver:
    """The messages of one packet, in agreed order. ``seq`` is the packet's place in ring ``ring``."""

    origin: Member
    ring: RingId
    seq: int
    messages: list[bytes]
    installing: bool


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration as the engine knows it, before the quorum verdict is added.

    For a transitional one ``members`` are those that come along from the old ring and ``id`` is the new ring.
    """

    id: RingId
    members: tuple[Member, ...]
    joined: tuple[Member, ...]
    left: tuple[Member, ...]
    transitional: bool
    reason: str
    entries: Mapping[int, Entry]  #: of all members of the *new* ring, by node id
    previous: RingId


@dataclass(slots=True)
class Install:
    """A configuration begins here."""

    configuration: Configuration


@dataclass(slots=True)
class Note:
    """A state change worth telling an operator; never one per message."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Stopped:
    """The engine has left on purpose or cannot go on; nothing follows."""

    reason: str


Output = Send | Persist | Deliver | Install | Note | Stopped | Rewire | Tell
