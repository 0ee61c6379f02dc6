"""``growth``: what becomes of a pair of operations when there are more names, and more nodes.

- *other names*: private and shared names, in a cluster whose table has so many other names, half of them private,
  beside the same in a cluster that has none. Rows of ``lock-private`` and ``lock-shared``; the value is the median
  time of a pair.
- *nodes*: a shared name in clusters of 2 to 16 nodes, beside the bare hop of the same run (``full``). A turn of the
  token has as many hops as there are nodes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import dlm
from dlm.bench.callers import Callers
from dlm.bench.pairs import keep
from dlm.bench.scale import PIN, Holder
from dlm.modes import EX, NL
from vsync.bench.contest import Measure, contest
from vsync.bench.hop import BareHop
from vsync.bench.options import Options, Tell
from vsync.bench.rows import Row, Sample, rows_of
from vsync.testcluster import LocalCluster

__all__ = ["growth"]

OTHERS: Sequence[int] = (100_000,)
ALL_OTHERS: Sequence[int] = (1_000, 100_000, 1_000_000)
NODES: Sequence[int] = (2, 4, 8, 16)
PAIRS_S = 0.4
HOPS = 400
EMPTY, HOP = "empty table", "bare hop"
WHATS = {"private": "lock-private", "shared": "lock-shared"}


def growth(transport: str, options: Options, tell: Tell) -> Iterator[Row]:
    """The rows. Raises ``VsyncError``."""

    def say(text: str) -> None:
        tell(f"{transport}: growth: {text}")

    for count in ALL_OTHERS if options.full else OTHERS:
        yield from _with_others(transport, count, options.rounds, say)
    if options.full:
        for nodes in NODES:
            yield from _with_nodes(transport, nodes, options.rounds, say)


def _with_others(transport: str, count: int, rounds: int, tell: Tell) -> Iterator[Row]:
    with contextlib.ExitStack() as stack:
        clusters = {name: stack.enter_context(_cluster(transport, 3)) for name in ("full", EMPTY)}
        tell(f"{count} names are locked")
        _load(stack, clusters["full"], count)
        measures = {name: _pairs(stack, cluster) for name, cluster in clusters.items()}
        entrants = {f"{kind}, {name}": of[kind] for name, of in measures.items() for kind in WHATS}
        found = contest(entrants, rounds, lambda text: tell(f"{count} names: {text}"))
        for kind, what in WHATS.items():
            described = _described(what, f"{count} other names", 3, transport)
            yield from rows_of(described, found[f"{kind}, full"], {EMPTY: found[f"{kind}, {EMPTY}"]})


def _with_nodes(transport: str, nodes: int, rounds: int, tell: Tell) -> Iterator[Row]:
    tell(f"{nodes} nodes are started")
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(_cluster(transport, nodes))
        hop = stack.enter_context(BareHop())
        entrants: dict[str, Measure] = {"shared": _pairs(stack, cluster)["shared"]}
        entrants[HOP] = partial(hop.latency, 64, HOPS)
        found = contest(entrants, rounds, lambda text: tell(f"{nodes} nodes: {text}"))
        described = _described("lock-shared", f"{nodes} nodes", nodes, transport)
        yield from rows_of(described, found["shared"], {HOP: found[HOP]})


def _cluster(transport: str, nodes: int) -> LocalCluster:
    return LocalCluster(nodes, settings={"transport": transport}, key=False)


def _described(what: str, case: str, nodes: int, transport: str) -> Mapping[str, object]:
    return {
        "what": what, "case": case, "nodes": nodes, "transport": transport, "via": "vsyncd", "size": None,
        "callers": 1, "unit": "us",
    }  # fmt: skip


def _load(stack: contextlib.ExitStack, cluster: LocalCluster, count: int) -> None:
    """Lock so many names at the first node, half of them shared."""
    holder, other = (stack.enter_context(Holder(node.url)) for node in cluster.nodes[:2])
    for each in (holder, other):
        each.lock(PIN, NL)
    holder.lock_many([f"private/{n}" for n in range(count // 2)], EX)
    holder.lock_many([f"shared/{n}" for n in range(count - count // 2)], EX, PIN)


def _pairs(stack: contextlib.ExitStack, cluster: LocalCluster) -> dict[str, Measure]:
    """Awaited pairs of a client of the first node, on a private and on a shared name: their median time."""
    url = cluster.nodes[0].url
    callers = stack.enter_context(Callers([("vsyncd", url, f"bench/{kind}") for kind in WHATS]))
    for held in keep(stack.enter_context(dlm.connect(cluster.nodes[1].url)), "bench/shared"):
        stack.enter_context(held)
    return {kind: partial(_median, callers, index) for index, kind in enumerate(WHATS)}


def _median(callers: Callers, which: int) -> Sample:
    found = callers.measure("awaited", PAIRS_S, [which])
    assert found.p50_us is not None
    return Sample(found.p50_us, found.p50_us, found.p99_us, found.p999_us)
