"""``vsync bench``: what ordering costs – latency and throughput of multicast messages –, beside corosync.

Three ways to use a ring are measured: a *service* in the node's own thread (``via`` embedded), a *group* of
programs with a node in each (embedded, case "group"), and a group of clients of ``vsyncd``. One member sends, every
member looks at each message, who sent it and its position. *Latency* is from submission to own delivery.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

from vsync.bench import corosync_load
from vsync.bench.contest import Measure, contest
from vsync.bench.corosync_load import CorosyncLoad
from vsync.bench.costs import idle_percent
from vsync.bench.hop import ONE_BY_ONE, BareHop
from vsync.bench.load import Nodes
from vsync.bench.member import WINDOWS, ClientMembers, EmbeddedMembers, Members
from vsync.bench.options import Options, Tell
from vsync.bench.rows import Row, Sample, rows_of, sample
from vsync.keys import ClusterKey
from vsync.transport.options import TransportConfig

__all__ = ["OrderingOptions", "run"]

Way = tuple[str, str]  #: via, case
HOP = "bare hop"
COROSYNC = "corosync"
BUSY = "the same, busy"
COLD_HOP = "bare hop, after idle"
AGREED = "agreed, vsyncd"
SERVICE: Way = ("embedded", "service")
COUNT = 400
LATENCY_S = 0.2
THROUGHPUT_S = 0.7
IDLE_S = 3.0
SILENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class OrderingOptions(Options):
    """And with how many nodes."""

    nodes: int = 3

    @property
    def latency_sizes(self) -> Sequence[int]:
        """Of the messages whose latency is measured."""
        return self.sizes if self.full else (64,)

    @property
    def sizes(self) -> Sequence[int]:
        """Of the messages whose throughput is measured."""
        return (64, 1000, 8000, 64_000) if self.full else tuple(WINDOWS)


def run(options: OrderingOptions, tell: Tell) -> tuple[list[Row], dict[str, str]]:
    """The rows, and which peers were not measured, and why. Raises ``VsyncError``."""
    why = corosync_load.missing() if options.peers else "not asked for (--peers)"
    if not why and options.nodes != 3:
        why = "it is compared with three nodes only"
    rows: list[Row] = []
    if options.wants("order-latency", "order-throughput", "order-after-idle"):
        for encrypted in (False, True):
            for transport in options.transports:
                with _Site(transport, encrypted, options, tell, with_corosync=not why) as site:
                    rows += [*site.latency(), *site.throughput(), *site.after_idle()]
    if options.wants("idle-cpu"):
        rows += _idle(options, tell)
    return rows, {COROSYNC: why} if why else {}


class _Site:
    """Rings of one kind, started side by side, and what is measured on them in turn."""

    def __init__(
        self, transport: str, encrypted: bool, options: OrderingOptions, tell: Tell, with_corosync: bool
    ) -> None:
        self._transport = transport
        self._encrypted = encrypted
        self._options = options
        self._tell = tell
        self._with_corosync = with_corosync
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        options, encrypted = self._options, self._encrypted
        self._say("the rings are started")
        how = TransportConfig(self._transport, ClusterKey.generate() if encrypted else None)
        with contextlib.ExitStack() as stack:
            self._hop = stack.enter_context(BareHop())
            self._service = stack.enter_context(Nodes(how, options.nodes))
            self._members: dict[Way, Members] = {
                ("embedded", "group"): stack.enter_context(EmbeddedMembers(how, options.nodes)),
                ("vsyncd", "group"): stack.enter_context(
                    ClientMembers(self._transport, encrypted=encrypted, nodes=options.nodes)
                ),
            }
            self._corosync = stack.enter_context(CorosyncLoad(encrypted=encrypted)) if self._with_corosync else None
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def latency(self) -> Iterator[Row]:
        """One message at a time."""
        if not self._options.wants("order-latency"):
            return
        for size in self._options.latency_sizes:
            entrants: dict[Way | str, Measure] = {
                way: partial(members.latency, size, COUNT) for way, members in self._members.items()
            }
            entrants[SERVICE] = partial(_timed, self._service, size)
            entrants[HOP] = partial(self._hop.latency, size, COUNT)
            if self._corosync is not None:
                entrants[COROSYNC] = partial(self._corosync.latency, size, COUNT)
            yield from self._rows("order-latency", "us", size, entrants)
        if not self._encrypted:
            safe: dict[Way | str, Measure] = {
                (via, f"{case}, safe"): partial(members.latency, 64, COUNT, "safe")
                for (via, case), members in self._members.items()
            }
            safe[AGREED] = partial(self._members["vsyncd", "group"].latency, 64, COUNT)
            yield from self._rows("order-latency", "us", 64, safe)

    def throughput(self) -> Iterator[Row]:
        """Many messages under way."""
        if not self._options.wants("order-throughput"):
            return
        for size in self._options.sizes:
            entrants: dict[Way | str, Measure] = {
                way: partial(members.throughput, size, THROUGHPUT_S) for way, members in self._members.items()
            }
            entrants[SERVICE] = partial(_loaded, self._service, size)
            if self._corosync is not None:
                entrants[COROSYNC] = partial(self._corosync.throughput, size, THROUGHPUT_S)
            else:
                entrants[ONE_BY_ONE] = partial(self._hop.rate, size, COUNT)
            yield from self._rows("order-throughput", "1/s", size, entrants)

    def after_idle(self) -> Iterator[Row]:
        """A lone message on a ring that was silent, beside those of a busy one."""
        if not self._options.wants("order-after-idle") or self._encrypted:
            return
        rings: dict[Way, Nodes | Members] = {SERVICE: self._service, **self._members}
        for way, ring in rings.items():
            entrants: dict[Way | str, Measure] = {
                way: partial(_alone, ring),
                BUSY: partial(_busy, ring),
                COLD_HOP: partial(_cold, self._hop),
            }
            yield from self._rows("order-after-idle", "us", 64, entrants)

    def _rows(self, what: str, unit: str, size: int, entrants: Mapping[Way | str, Measure]) -> Iterator[Row]:
        """Measure in turn; a row for each way and peer."""
        names = {_text(who): measure for who, measure in entrants.items()}
        found = contest(names, self._options.rounds, lambda text: self._say(f"{what}, {size} B: {text}"))
        peers = {who: found[who] for who in entrants if isinstance(who, str)}
        for way in entrants:
            if not isinstance(way, str):
                via, case = way
                described = {
                    "what": what, "case": case + ", encrypted" * self._encrypted, "nodes": self._options.nodes,
                    "transport": self._transport, "via": via, "size": size, "callers": 1, "unit": unit,
                }  # fmt: skip
                yield from rows_of(described, found[_text(way)], peers)

    def _say(self, text: str) -> None:
        self._tell(f"{self._transport}{', encrypted' * self._encrypted}: {text}")


def _text(who: Way | str) -> str:
    return who if isinstance(who, str) else ", ".join(who)


def _timed(nodes: Nodes, size: int) -> Sample:
    measured = nodes.measure(size, 1, 1, LATENCY_S)
    return sample(measured.times, cpu_us=measured.cpu_us)


def _loaded(nodes: Nodes, size: int) -> Sample:
    measured = nodes.measure(size, 1, WINDOWS.get(size, 16), THROUGHPUT_S)
    return Sample(measured.rate, cpu_us=measured.cpu_us)


def _alone(ring: Nodes | Members) -> Sample:
    return sample([ring.alone(64, SILENCE_S)])


def _cold(hop: BareHop) -> Sample:
    time.sleep(SILENCE_S)
    return hop.latency(64, 1)


def _busy(ring: Nodes | Members) -> Sample:
    return _timed(ring, 64) if isinstance(ring, Nodes) else ring.latency(64, COUNT)


def _idle(options: Options, tell: Tell) -> Iterator[Row]:
    """CPU time of a daemon in a ring that has nothing to do; the floor is a program that only waits."""
    for transport in options.transports:
        found = contest({f"idle {transport}": partial(_idle_percent, transport)}, options.rounds, tell)
        described = {
            "what": "idle-cpu", "case": "", "nodes": 3, "transport": transport, "via": "vsyncd", "size": None,
            "callers": None, "unit": "%",
        }  # fmt: skip
        yield from rows_of(described, found[f"idle {transport}"], {"one core": Sample(100.0)})


def _idle_percent(transport: str) -> Sample:
    return Sample(idle_percent(transport, 1, IDLE_S))
