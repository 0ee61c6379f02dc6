"""``matrix``: the table of 2005, as people asked for it when the kernel's lock manager was reviewed.

Clusters of one to three nodes; the requester's node owns the name, or it does not (another node has a lock on it,
so each operation is an ordered message); one caller, many, or one that has ten requests under way; lock and unlock,
or a conversion from NL to EX and back. All through ``vsyncd``, all answered. Rows of ``lock-private`` and
``lock-shared``, beside the bare hop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import dlm
from dlm.bench.callers import Callers, daemons
from dlm.bench.pairs import converted, keep
from vsync.bench.contest import Measure, contest
from vsync.bench.hop import ONE_BY_ONE, BareHop
from vsync.bench.options import Options, Tell
from vsync.bench.rows import Row, Sample, rows_of
from vsync.testcluster import LocalCluster

__all__ = ["matrix"]

NODES: Sequence[int] = (1, 2, 3)
MANY = 16  #: callers
PAIRS_S = 0.25
MOST_ROUNDS = 3
HOPS = 400
#: Ways (``dlm.bench.pairs``), and with how many callers.
CELLS = (
    ("awaited", 1), ("awaited", MANY), ("pipelined", 1),
    ("conversion", 1), ("conversion", MANY), ("conversion, pipelined", 1),
)  # fmt: skip


def matrix(transport: str, options: Options, tell: Tell) -> Iterator[Row]:
    """The rows. Raises ``VsyncError``."""
    rounds = min(options.rounds, MOST_ROUNDS)
    for nodes in NODES:

        def say(text: str, nodes: int = nodes) -> None:
            tell(f"{transport}: {nodes} node{'s' * (nodes > 1)}: {text}")

        yield from _of_cluster(transport, nodes, rounds, say)


def _of_cluster(transport: str, nodes: int, rounds: int, say: Tell) -> Iterator[Row]:
    with contextlib.ExitStack() as stack:
        say("are started")
        cluster = stack.enter_context(LocalCluster(nodes, settings={"transport": transport}, key=False))
        clients = [stack.enter_context(dlm.connect(node.url)) for node in cluster.nodes]
        hop = stack.enter_context(BareHop())
        callers = {
            count: stack.enter_context(
                Callers([("vsyncd", cluster.nodes[n % nodes].url, f"matrix/{count}/{n}") for n in range(count)])
            )
            for count in (1, MANY)
        }
        others = daemons(cluster, clients)
        cells: dict[str, Measure] = {
            _title(way, count): partial(callers[count].measure, way, PAIRS_S, None, others) for way, count in CELLS
        }
        cells[ONE_BY_ONE] = partial(hop.rate, 64, HOPS)
        yield from _rows("lock-private", transport, nodes, contest(cells, rounds, say))
        if nodes > 1:
            for name, n in ((f"matrix/{count}/{n}", n) for count in callers for n in range(count)):
                for each in (name, converted(name)):
                    for held in keep(clients[(n + 1) % nodes], each):
                        stack.enter_context(held)
            yield from _rows("lock-shared", transport, nodes, contest(cells, rounds, say))


def _title(way: str, callers: int) -> str:
    return f"{way}, {callers} caller{'s' * (callers > 1)}"


def _rows(what: str, transport: str, nodes: int, found: Mapping[str, Sample]) -> Iterator[Row]:
    for way, callers in CELLS:
        described = {
            "what": what, "case": way, "nodes": nodes, "transport": transport, "via": "vsyncd", "size": None,
            "callers": callers, "unit": "1/s",
        }  # fmt: skip
        yield from rows_of(described, found[_title(way, callers)], {ONE_BY_ONE: found[ONE_BY_ONE]})
