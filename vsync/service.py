"""The interface between the ring and what runs on it (corosync's service engines, done with Python packaging).

A *service* is a deterministic handler of the ordered stream: views and messages, in one sequence, equal at every
member. ``vsync.groups`` is one, ``dlm`` brings another through the entry point group ``vsync.services``. A service
is pure: time is an argument, and all it can do to the world goes through its ``Host``.

The first byte of every ordered payload is the *tag* of the service it belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vsync.types import ClusterConfig, Member, View

__all__ = ["Credentials", "Host", "Kill", "Service", "Spawn", "Spawner"]


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who is at the other end of a local session, as the kernel says."""

    pid: int
    uid: int
    gid: int
    name: str = ""


class Host(Protocol):
    """What a service may do. Every call only appends to the node's one ordered list of outputs."""

    me: Member
    view: View | None  #: the current regular view

    @property
    def config(self) -> ClusterConfig:
        """What the node is told about its cluster; its ``peers`` change with ``vsync nodes``."""
        ...

    @property
    def lease_basis(self) -> int | None:
        """Clock of this node before it sent the token at the visit before the one just accepted (pitfalls K10).

        Everybody in the ring has been heard after that instant. ``None`` outside an operational ring.
        """
        ...

    @property
    def last_token(self) -> int:
        """Clock at which the last token was accepted."""
        ...

    @property
    def stable(self) -> int:
        """Messages of the current ring at positions below this are known to have been received by all its members
        (the SAFE line, EVS-E22): whatever becomes of this node, the others deliver them, too.
        """
        ...

    def submit(self, payload: bytes, urgent: bool = False, safe: bool = False) -> None:
        """Multicast ``payload`` in agreed order (first byte = the service's tag).

        ``urgent`` goes ahead of all that waits here, so that it can be this node's first message in a new ring.
        ``safe``: deliver it only when every member is known to have it (EVS-E22).
        Raises ``Backpressure`` when the send queue is full, ``MessageTooLarge`` over ``MAX_MESSAGE``.
        """
        ...

    def reply(self, session: int, rid: int, result: Any) -> None:
        """Answer request ``rid`` of a local session. ``result`` must be msgpack-able. rid 0 is not answered."""
        ...

    def refuse(self, session: int, rid: int, code: str, message: str, **more: Any) -> None:
        """Answer request ``rid`` with an error; ``code`` is a stable word, ``message`` for people."""
        ...

    def push(self, session: int, service: str, kind: str, data: Any) -> None:
        """Send an unsolicited event to a local session."""
        ...

    def event(self, name: str, **fields: Any) -> None:
        """Tell operators: goes to the log and the flight recorder."""
        ...

    def reform(self, reason: str) -> None:
        """Leave Operational and form a new ring with the same members."""
        ...

    def hurry(self) -> None:
        """Somebody waits for ``stable`` to rise, or for the lease: the token must not linger at this node."""
        ...

    def spawn(self, service: str, ticket: int, argv: Sequence[str], stdin: bytes, timeout_us: int) -> None:
        """Have a program run, without a shell: ``argv[0]`` is a path, or a name that is looked for.

        ``service`` is the caller's name, ``ticket`` a number of its own. It is told the end of it, once, by
        ``Spawner.spawned``; after ``timeout_us`` the program and its children are killed. What runs when the node
        ends is killed, and nobody is told.
        """
        ...

    def kill(self, service: str, ticket: int) -> None:
        """The program is not wanted any more: kill it, if it has not ended. ``spawned`` is called as always."""
        ...


class Service(Protocol):
    """A deterministic handler of the ordered stream. All methods are called by one thread."""

    name: str  #: in requests, status and logs
    tag: int  #: 1..255, first byte of this service's ordered payloads

    def attach(self, host: Host, now: int) -> None:
        """Called once, before anything else."""

    def announce(self, attempts: Sequence[View] = ()) -> bytes:
        """Bytes for this node's entry in a commit token: small, as of now (pitfalls K1, K2), or as they would be if
        these views had been installed since (K7).
        """
        ...

    def deliver(self, origin: Member, position: int, payload: bytes, installing: bool, now: int) -> None:
        """An ordered message (tag byte included).

        ``installing`` is true for what is delivered between the end of the old ring's normal operation and the
        regular view: the recovered rest of the prefix, and what follows the transitional view (pitfalls K3).
        """

    def view(self, view: View, now: int) -> None:
        """A transitional or regular view, in its place in the sequence."""

    def open(self, session: int, who: Credentials, now: int) -> None:
        """A local client connected."""

    def close(self, session: int, now: int) -> None:
        """A local client has gone: disconnected, or its process died."""

    def request(self, session: int, rid: int, verb: str, args: Mapping[str, Any], now: int) -> None:
        """A local client's request. Answer now or later, once, with ``host.reply`` or ``host.refuse``."""

    def token(self, now: int) -> None:
        """The node has just accepted a token (so ``lease_basis`` may have moved)."""

    def fire(self, now: int) -> None:
        """The time of ``next_deadline`` has come. Spurious calls must be harmless."""

    def next_deadline(self) -> int | None:
        """When ``fire`` wants to be called, or ``None``."""
        ...

    def leaving(self, now: int) -> None:
        """The node is about to leave on purpose: say goodbye in the ordered stream. May be called once."""

    def may_leave(self) -> bool:
        """Whether the goodbye has been delivered (or there is nothing to wait for)."""
        ...

    def status(self) -> dict[str, Any]:
        """A snapshot for people and programs; msgpack-able."""
        ...


class Spawner(Protocol):
    """What a service has besides if it runs programs."""

    def spawned(self, ticket: int, exit_code: int | None, output: bytes, now: int) -> None:
        """A program has ended. Without an exit code it has not done its work – it could not be started, or was
        killed –, and the last line of ``output`` says why. ``output`` has the first 64 KiB of what it wrote.
        """


@dataclass(slots=True)
class Spawn:
    """Run a program for a service; its end is told by ``Core.spawned``. ``timeout`` in µs."""

    service: str
    ticket: int
    argv: tuple[str, ...]
    stdin: bytes = field(repr=False)  # may hold a password
    timeout: int


@dataclass(slots=True)
class Kill:
    """A program is not wanted any more."""

    service: str
    ticket: int
