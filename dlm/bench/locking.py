"""``dlm bench``: what locks cost, beside what a user would pick instead. The rows of pairs of operations.

- *private*: only this node knows the name (the requester owns it); *shared*: another node has an NL lock on it all
  the time, so that each operation is one ordered message.
- *handle*: ``acquire`` and ``release``, whose message nobody waits for; *awaited*: ``release(wait=True)``; *with*:
  ``with lock:``; *conversion*: NL to EX and back on a lock that stays; *cached*, *cached with*: *handle* and *with*
  of a lock that the client keeps after its release.
- ``via`` embedded: the caller has a node in its own process; vsyncd: it is a client. Callers are processes with
  names of their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Self

import dlm
from dlm.bench.callers import ALONE, Callers, daemons
from dlm.bench.pairs import MULTI, keep
from dlm.bench.peers import PEERS, Server, missing
from vsync.bench.contest import Measure, contest
from vsync.bench.options import Options, Tell
from vsync.bench.rows import Row, Sample, rows_of
from vsync.testcluster import LocalCluster, free_ports

__all__ = ["Locking"]

MANY = 16  #: callers
PAIRS_S = 0.4
REDIS = "redis-py"
ONE = "one name"


class Locking:
    """Our clusters of three nodes and the peers, started side by side; ``with`` ends them."""

    def __init__(self, transport: str, options: Options, tell: Tell) -> None:
        self.absent = {peer: missing(peer) if options.peers else "not asked for (--peers)" for peer in PEERS}
        self.absent = {peer: why for peer, why in self.absent.items() if why}
        self._transport = transport
        self._options = options
        self._tell = tell
        self._stack = contextlib.ExitStack()
        self._peers: dict[str, dict[int, Callers]] = {}
        self._kept: list[dlm.Held] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._say("clusters are started")
            self._cluster = stack.enter_context(
                LocalCluster(3, settings={"transport": self._transport}, key=False)
            )
            self._watch = [stack.enter_context(dlm.connect(node.url)) for node in self._cluster.nodes]
            urls = [node.url for node in self._cluster.nodes]
            self._one, self._many = (
                stack.enter_context(
                    Callers([("vsyncd", urls[n % 3], f"bench/{count}/{n}") for n in range(count)])
                )
                for count in (1, MANY)
            )
            ports = " ".join(map(str, free_ports(3)))
            self._embedded = stack.enter_context(
                Callers([("embedded", self._transport, str(n), ports, "bench/embedded") for n in (1, 2, 3)])
            )
            for peer in PEERS:
                if peer not in self.absent:
                    self._say(f"{peer} is started")
                    port = str(stack.enter_context(Server(peer)).port)
                    self._peers[peer] = {
                        count: stack.enter_context(
                            Callers([("peer", peer, port, f"b{count}-{n}") for n in range(count)])
                        )
                        for count in (1, MANY)
                    }
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def rows(self) -> Iterator[Row]:
        """Private names first: they become shared afterwards."""
        if self._options.wants("lock-private"):
            yield from self._pairs("lock-private", ("handle", "with", "awaited", "conversion"), [REDIS])
        if self._options.wants("lock-cached"):
            yield from self._pairs("lock-cached", ("cached", "cached with"), [REDIS])
        if self._options.wants("lock-shared", "lock-multi"):
            self._share()
        if self._options.wants("lock-shared"):
            yield from self._pairs("lock-shared", ("handle", "awaited", "conversion"), list(PEERS))
        if self._options.wants("lock-multi"):
            yield from self._multi()

    def _pairs(self, what: str, ways: Sequence[str], peers: Sequence[str]) -> Iterator[Row]:
        for callers in (1, MANY):
            own = {("vsyncd", way): self._ours("vsyncd", way, callers) for way in ways}
            if callers == 1:
                own.update({("embedded", way): self._ours("embedded", way, 1) for way in ways})
            there = [peer for peer in peers if peer in self._peers]
            others = {peer: partial(self._peers[peer][callers].measure, "", PAIRS_S) for peer in there}
            yield from self._contest(what, callers, own, others)

    def _multi(self) -> Iterator[Row]:
        for via in ("vsyncd", "embedded"):
            own = {(via, "multi"): _by_time(self._ours(via, "multi", 1))}
            one: dict[str, Measure] = {ONE: _by_time(self._ours(via, "handle", 1))}
            yield from self._contest("lock-multi", 1, own, one, unit="us")

    def _ours(self, via: str, way: str, callers: int) -> Measure:
        if via == "embedded":
            return partial(self._embedded.measure, way, PAIRS_S, [0], ALONE)
        others = daemons(self._cluster, self._watch)
        return partial((self._one if callers == 1 else self._many).measure, way, PAIRS_S, None, others)

    def _contest(
        self,
        what: str,
        callers: int,
        own: Mapping[tuple[str, str], Measure],
        others: Mapping[str, Measure],
        unit: str = "1/s",
    ) -> Iterator[Row]:
        entrants = {", ".join(way): measure for way, measure in own.items()} | dict(others)
        title = f"{what}, {callers} caller{'s' * (callers > 1)}"
        found = contest(entrants, self._options.rounds, lambda text: self._say(f"{title}: {text}"))
        for via, way in own:
            described = {
                "what": what, "case": f"{MULTI} names" if way == "multi" else way, "nodes": 3,
                "transport": self._transport, "via": via, "size": None, "callers": callers, "unit": unit,
            }  # fmt: skip
            yield from rows_of(described, found[f"{via}, {way}"], {peer: found[peer] for peer in others})

    def _share(self) -> None:
        """An NL lock on every name at a node where nobody asks for it."""
        for n in range(MANY):
            self._kept += keep(self._watch[(n + 1) % 3], f"bench/{MANY}/{n}")
        self._kept += keep(self._watch[1], "bench/1/0")
        self._embedded.do("keep", 1)

    def _say(self, text: str) -> None:
        self._tell(f"{self._transport}: {text}")


def _by_time(measure: Measure) -> Measure:
    """The same, with the median time for its value."""

    def timed() -> Sample:
        found = measure()
        assert found.p50_us is not None
        return Sample(found.p50_us, found.p50_us, found.p99_us, found.p999_us, found.cpu_us, found.messages)

    return timed
