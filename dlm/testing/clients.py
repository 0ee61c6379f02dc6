"""Client processes: what each knows and believes about its locks.

A client lives apart from its daemon: when the daemon dies it still believes in its handles until the deadline
that stands in its page. When the client itself dies its handles end at once (the library marks them lost before
it closes the socket).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dlm.cache import Cache, Entry
from dlm.modes import CR, NL, NONE, is_down, is_middle

if TYPE_CHECKING:
    from vsync.testing.node import SimNode

__all__ = ["Client", "Handle", "Operation", "Page"]


@dataclass(slots=True)
class Page:
    """The deadline page of one daemon process, as last written: what its clients go by, even after its death."""

    generation: int = 0
    deadline: int = 0  #: boot-time µs of its host


@dataclass(slots=True)
class Operation:
    """A request whose answer is outstanding. ``mode`` is the one asked for."""

    verb: str
    rid: int
    handle: Handle
    mode: int
    since: int  #: true time of asking
    noqueue: bool = False
    flags: frozenset[str] = frozenset()  #: the others, by their names in a request
    together: tuple[Handle, ...] = ()  #: a multi-lock: all its handles
    listened: bool = False  #: whether its handle wanted to be told whom it blocks, until then
    given_up: bool = False  #: it was cancelled; what it has got will go, part by part where the order says so
    ok: bool | None = None  #: ``None`` while the client has read no answer
    data: Any = None  #: result or error, as answered


@dataclass(slots=True)
class Handle:
    """One lock as its client sees it. ``mode`` is what it relies on at this moment (D8)."""

    client: Client
    h: int
    name: bytes
    mode: int = NONE
    asked: int = NONE  #: as a part of a multi-lock
    granted: int = NONE  #: as last told, whatever it relies on now
    fence: int = 0
    first: int = 0  #: the fence that its lock has in the table: the first of a block
    entry: Entry | None = None  #: its lock is kept after its release, and this ..
    user: int = 0  #: .. is its use
    generation: int = 0
    over: bool = False  #: released, lost, or its process has ended
    operation: Operation | None = None  #: a lock or convert in progress
    canceling: bool = False
    listens: bool = False  #: it asked to be told whom it blocks
    persistent: bool = False  #: it stays, without an owner, when its process ends (P1)

    @property
    def held(self) -> bool:
        """Whether the client believes in it, the lease left aside."""
        return self.mode != NONE and not self.over

    def valid(self, true: int | None = None) -> bool:
        """Whether the client may act on it at true time ``true`` (default: now)."""
        page, node = self.client.page, self.client.node
        return self.held and self.generation == page.generation and node.clock(true) < page.deadline

    def asks_for(self, mode: int, flags: frozenset[str] = frozenset()) -> None:
        """A conversion begins: what it may lose by it, it stops relying on now, not at the answer (K11, D8)."""
        if "convdeadlk" in flags:
            self.mode = NL
        elif is_down(self.granted, mode):
            self.mode = mode
        elif is_middle(self.granted, mode):
            self.mode = CR

    def __str__(self) -> str:
        client = self.client
        return f"node {client.node.id} session {client.session} handle {self.h}"


@dataclass(slots=True)
class Client:
    """One client process and its session."""

    node: SimNode
    session: int
    page: Page
    incarnation: int  #: of the daemon it is connected to
    lag: int = 0  #: µs until it reads what is in its socket, at most; 0: at once
    alive: bool = True
    rid: int = 0
    next_handle: int = 0
    handles: dict[int, Handle] = field(default_factory=dict)
    pending: dict[int, Operation] = field(default_factory=dict)  #: by rid, those that the daemon has not answered
    cache: Cache = field(default_factory=Cache)
    firsts: dict[int, int] = field(default_factory=dict)  #: of kept locks, see ``Handle.first``
    inbox: deque[Callable[[], None]] = field(default_factory=deque)  #: what is in its socket, and not read yet

    @property
    def connected(self) -> bool:
        """Whether its daemon still runs."""
        return self.alive and self.node.up and self.node.incarnation == self.incarnation

    def new_handle(self, name: bytes) -> Handle:
        """A handle with the next number."""
        self.next_handle += 1
        handle = self.handles[self.next_handle] = Handle(self, self.next_handle, name)
        return handle

    def begin(
        self,
        verb: str,
        handle: Handle,
        mode: int,
        now: int,
        noqueue: bool = False,
        flags: frozenset[str] = frozenset(),
        together: tuple[Handle, ...] = (),
    ) -> Operation:
        """Note a request that is about to be sent."""
        self.rid += 1
        operation = Operation(verb, self.rid, handle, mode, now, noqueue, flags, together)
        self.pending[self.rid] = operation
        if verb in ("lock", "convert", "lock_all"):
            for each in together or (handle,):
                each.operation, operation.listened = operation, each.listens
                each.listens = "blocking" in flags
        return operation

    def drop(self, handle: Handle) -> None:
        """The handle is over."""
        handle.over = True
        self.handles.pop(handle.h, None)
