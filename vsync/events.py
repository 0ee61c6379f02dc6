"""What the streams of ``vsync.client`` are made of. Immutable; equal when their contents are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import msgpack

__all__ = ["ClusterView", "Message", "NodeLife", "Process", "View", "messages_of"]


@dataclass(frozen=True, slots=True)
class NodeLife:
    """One life of one node: a restarted node is another one."""

    id: int
    name: str
    incarnation: int

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class ClusterView:
    """One configuration of the cluster, in the same order at every member.

    ``id`` is the ring id (``representative.sequence``). A *transitional* view tells who goes on together
    from the old ring; the regular one with the same ``id`` follows it. ``primary``: its members have the
    majority.
    """

    id: str
    members: tuple[NodeLife, ...]
    joined: tuple[NodeLife, ...]
    left: tuple[NodeLife, ...]
    primary: bool
    transitional: bool
    reason: str

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """From what a daemon sends; raises ``KeyError`` if something is missing."""

        def lives(key: str) -> tuple[NodeLife, ...]:
            return tuple(NodeLife(m["id"], m["name"], m["incarnation"]) for m in data[key])

        return cls(
            id=data["id"],
            members=lives("members"),
            joined=lives("joined"),
            left=lives("left"),
            primary=data["primary"],
            transitional=data["transitional"],
            reason=data["reason"],
        )


@dataclass(frozen=True, slots=True)
class Process:
    """A member of a group: one session with one node.

    ``reason`` says why it stands in ``joined`` (join, nodeup) or ``left`` (leave, procdown, nodedown); it
    is empty elsewhere. ``pid`` is 0 where the node does not tell.
    """

    node: int
    session: int
    name: str
    pid: int = 0
    reason: str = ""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """From what a daemon sends."""
        return cls(data["node"], data["session"], data["name"], data.get("pid", 0), data.get("reason", ""))


@dataclass(frozen=True, slots=True)
class View:
    """Who is in a group from here on in its stream.

    ``primary`` says whether the ring view it belongs to is primary; ``ring`` is that view's id.
    """

    group: str
    members: tuple[Process, ...]
    joined: tuple[Process, ...]
    left: tuple[Process, ...]
    primary: bool
    ring: str

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """From what a daemon sends."""

        def processes(key: str) -> tuple[Process, ...]:
            return tuple(Process.from_dict(p) for p in data[key])

        ring = data.get("view") or {}
        return cls(
            group=data["group"],
            members=processes("members"),
            joined=processes("joined"),
            left=processes("left"),
            primary=bool(ring.get("primary", False)),
            ring=str(ring.get("id", "")),
        )


class Message(NamedTuple):
    """A message of a group; ``seq`` (``ring:position``, with ``.number`` if several were sent together) names its
    place, the same at every member.
    """

    group: str
    sender: Process
    seq: str
    data: bytes

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Message:
        """From what a daemon sends."""
        return cls(data["group"], Process.from_dict(data["sender"]), data["seq"], data["data"])


def messages_of(data: Mapping[str, Any]) -> Iterator[Message]:
    """Those that were sent together, as a daemon hands them on, made when they are asked for."""
    group, sender, seq = data["group"], Process.from_dict(data["sender"]), data["seq"]
    batch: list[bytes] = msgpack.unpackb(data["batch"])
    make = tuple.__new__  # what a named tuple does besides takes as long again
    return (make(Message, (group, sender, f"{seq}.{number}", each)) for number, each in enumerate(batch))
