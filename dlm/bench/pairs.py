"""What callers do over and over again: one pair of operations on names of their own, in the ways that a user has.

A *pair* is a function without arguments. It is made in the caller's process, from a description that can be sent
there. ``WAYS`` has all of them; those of others are in ``dlm.bench.peers``.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import dlm
from dlm import Mode
from vsync.bench.embedded import configs, joined
from vsync.errors import VsyncError
from vsync.transport.options import TransportConfig

__all__ = ["MULTI", "WAYS", "Caller", "Pair", "converted", "keep", "made", "names_of", "sent_by"]

Pair = Callable[[], object]
MULTI = 10  #: names of a multi-lock, and of what is pipelined
PATIENCE_S = 10.0


def names_of(name: str) -> list[str]:
    """Those of a multi-lock, and of what is pipelined."""
    return [f"{name}/{number}" for number in range(MULTI)]


def handle(client: dlm.Client, name: str) -> Pair:
    """``acquire`` and ``release``, whose message nobody waits for."""

    def pair() -> None:
        client.acquire(name).release()

    return pair


def cached(client: dlm.Client, name: str) -> Pair:
    """The same as ``handle`` with a lock that is kept after its release."""

    def pair() -> None:
        client.acquire(name, cache=True).release()

    return pair


def cached_with(client: dlm.Client, name: str) -> Pair:
    """``with lock:``, kept as well."""
    lock = client.lock(name, cache=True)

    def pair() -> None:
        with lock:
            pass

    return pair


def awaited(client: dlm.Client, name: str) -> Pair:
    """The release is waited for, too."""

    def pair() -> None:
        client.acquire(name).release(wait=True)

    return pair


def with_block(client: dlm.Client, name: str) -> Pair:
    """``with lock:``."""
    lock = client.lock(name)

    def pair() -> None:
        with lock:
            pass

    return pair


def conversion(client: dlm.Client, name: str) -> Pair:
    """A lock that is always there goes up from NL to EX and down again."""
    held = client.acquire(name, Mode.NL)

    def pair() -> None:
        held.convert(Mode.EX)
        held.convert(Mode.NL)

    return pair


def multi(client: dlm.Client, name: str) -> Pair:
    """Ten names at once."""
    names = names_of(name)

    def pair() -> None:
        client.acquire_all(*names).release()

    return pair


def pipelined(client: dlm.Client, name: str) -> Pair:
    """Ten requests under way all the time: the oldest is waited for, its lock given back without a wait, and
    asked for again.
    """
    space = dlm.Lockspace(client)
    asked = deque(space.lock(Mode.EX, each) for each in names_of(name))

    def pair() -> None:
        first = asked.popleft()
        granted(first)
        space.unlock(first.lkid)
        asked.append(space.lock(Mode.EX, first.name))

    return pair


def conversion_pipelined(client: dlm.Client, name: str) -> Pair:
    """The same with conversions of ten locks that are always there, on names of their own."""
    space = dlm.Lockspace(client)
    asked = deque(space.lock(Mode.NL, each) for each in names_of(converted(name)))

    def pair() -> None:
        for _ in (Mode.EX, Mode.NL):
            first = asked.popleft()
            granted(first)
            asked.append(space.convert(first.lkid, Mode.EX if first.mode == Mode.NL else Mode.NL))

    return pair


def converted(name: str) -> str:
    """What the names of pipelined conversions begin with."""
    return f"{name}/converted"


def granted(asked: dlm.Lksb) -> None:
    """Wait for it."""
    status = asked.wait(PATIENCE_S)
    if status is not dlm.Status.OK:
        raise VsyncError(f"{asked!r} was not granted: {status.name}")


def keep(client: dlm.Client, name: str) -> list[dlm.Held]:
    """NL locks, by which the names stay known to this node, and shared, for as long as it has them."""
    return [client.acquire(each, Mode.NL) for each in [name, *names_of(name)]]


def kept(client: dlm.Client, name: str) -> Pair:
    """Not a pair: see ``keep``."""
    held = keep(client, name)
    return lambda: held


WAYS: Mapping[str, Callable[[dlm.Client, str], Pair]] = {
    "handle": handle,
    "cached": cached,
    "cached with": cached_with,
    "awaited": awaited,
    "with": with_block,
    "conversion": conversion,
    "multi": multi,
    "pipelined": pipelined,
    "conversion, pipelined": conversion_pipelined,
    "keep": kept,
}


class Caller:
    """The pairs of one caller, each made when it is asked for the first time."""

    def __init__(self, make: Callable[[str], Pair], messages: Callable[[], int] = lambda: 0) -> None:
        self._make = make
        self._made: dict[str, Pair] = {}
        self.messages = messages  #: ordered messages of its own node so far, if it has one

    def pair(self, way: str) -> Pair:
        """See ``WAYS``; a peer has but one."""
        if way not in self._made:
            self._made[way] = self._make(way)
        return self._made[way]


def sent_by(status: Mapping[str, Any]) -> int:
    """Ordered messages that a node has sent so far, by its status."""
    return int(status["ring"]["counters"].get("messages_tx", 0))


@contextlib.contextmanager
def at_daemon(url: str, name: str) -> Iterator[Caller]:
    """A client of ``vsyncd``."""
    with dlm.connect(url, name="bench") as client:
        yield Caller(lambda way: WAYS[way](client, name))


@contextlib.contextmanager
def embedded(transport: str, number: str, ports: str, name: str, process: bool = False) -> Iterator[Caller]:
    """A program with a node in it, or in a child process; ``ports``: of all nodes, this one is ``number``."""
    config = configs(map(int, ports.split()))[int(number) - 1]
    with joined(config, TransportConfig(transport), process=process) as node, dlm.Client(node) as client:
        yield Caller(lambda way: WAYS[way](client, name), lambda: sent_by(node.status()))


@contextlib.contextmanager
def at_peer(peer: str, port: str, name: str) -> Iterator[Caller]:
    """A client of something else."""
    from dlm.bench import peers

    with peers.PAIRS[peer](port, name) as pair:
        yield Caller(lambda way: pair)


MAKERS: Mapping[str, Callable[..., AbstractContextManager[Caller]]] = {
    "vsyncd": at_daemon,
    "embedded": embedded,
    "process": partial(embedded, process=True),
    "peer": at_peer,
}


def made(description: tuple[str, ...]) -> AbstractContextManager[Caller]:
    """The caller that is described: ("vsyncd", url, name), ("embedded", transport, number, ports, name),
    ("process", the same) or ("peer", which, port, name).
    """
    kind, *how = description
    return MAKERS[kind](*how)
