"""One run in two phases: chaos, then everything is healed and must become calm."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vsync.testing.bounds import VIEWS, check_installed, delivery
from vsync.testing.cluster import SimCluster
from vsync.testing.groups_workload import GroupPlugin
from vsync.testing.nemesis import Nemesis, Traffic
from vsync.testing.node import SimNode
from vsync.testing.options import Options
from vsync.testing.plugin import Plugin
from vsync.testing.rules import Cell
from vsync.testing.trace import Trace
from vsync.testing.violation import KnownLimit, Violation

__all__ = ["Result", "run"]

SECOND = 1_000_000
_LAST = b"the last message"


@dataclass(slots=True)
class Result:
    """What became of one run. ``cpu`` in seconds, ``virtual`` in µs."""

    options: Options
    trace: Trace
    violation: Violation | None
    limit: KnownLimit | None  #: why the run ended early, if it did
    virtual: int
    events: int
    frames: int
    messages: int
    views: int
    faults: int
    cpu: float
    fired: Counter[Cell]  #: nested faults, see ``vsync.testing.rules``

    def line(self) -> str:
        """One line for people."""
        verdict = "ok" if self.limit is None else f"ended at a known limit, {self.limit.rule}"
        if self.violation is not None:
            verdict = f"VIOLATION {self.violation.rule}"
        return (
            f"seed {self.options.seed}: {verdict}; {self.virtual / SECOND:.1f} s virtual, "
            f"{self.events} events, {self.frames} frames, {self.messages} messages, "
            f"{self.views} views, {self.faults} faults, {self.cpu:.2f} s CPU, trace {self.trace.hash}"
        )


def run(
    options: Options, plugins: Sequence[Plugin] = (), keep_events: int | None = 4_000, strict: bool = False
) -> Result:
    """Run the seed. A broken property ends the run and is in the result; nothing else is caught.

    ``strict``: a known limit counts as a broken property.
    """
    began = time.process_time()
    if options.group_interval:
        plugins = (*plugins, GroupPlugin(options.seed, options.group_interval))
    cluster = SimCluster(options=options, plugins=plugins, keep_events=keep_events)
    nemesis, traffic = Nemesis(cluster), Traffic(cluster)
    violation: Violation | None = None
    limit: KnownLimit | None = None
    try:
        _chaos(cluster, nemesis, traffic)
        _calm(cluster, nemesis, traffic)
    except KnownLimit as found:
        limit, violation = found, found if strict else None
    except Violation as found:
        violation = found
    return Result(
        options=options,
        trace=cluster.trace,
        violation=violation,
        limit=limit,
        virtual=cluster.scheduler.now,
        events=cluster.scheduler.steps,
        frames=cluster.network.sent,
        messages=sum(node.recorder.number for node in cluster.nodes.values()),
        views=len(cluster.checkers.views.configurations),
        faults=nemesis.actions,
        cpu=time.process_time() - began,
        fired=nemesis.fired,
    )


def _chaos(cluster: SimCluster, nemesis: Nemesis, traffic: Traffic) -> None:
    """First phase: nodes start one after the other, traffic flows, things break."""
    options = cluster.options
    for node in cluster.nodes.values():
        cluster.scheduler.at(cluster.rng.randint(0, options.start_spread), node.start)
    traffic.begin()
    nemesis.begin()
    cluster.advance(options.chaos / SECOND)


def _calm(cluster: SimCluster, nemesis: Nemesis, traffic: Traffic) -> None:
    """Second phase (EVS-E12, E25, E26): one view of all, all pending delivered, one last message each."""
    options = cluster.options
    traffic.stop()
    nemesis.mend()
    for plugin in cluster.plugins:
        plugin.settle(cluster)
    # liveness is promised for a stable connected set: from now on nothing is lost
    cluster.network.options = replace(options.links, loss=0.0, reorder=0.0)
    nodes = cluster.nodes.values()
    cluster.run_until(lambda: all(n.up and not n.leaving for n in nodes), 10.0, "the end of every leave")
    before = {node.me: len(node.recorder.views) for node in nodes}
    cluster.settle()
    for node in nodes:
        regular = (len(node.recorder.views) - before[node.me]) // 2  # each has its transitional one
        if regular > VIEWS:
            raise Violation("EVS-E27", f"node {node.id} went through {regular} views after the last fault")
    check_installed(cluster.checkers.views)
    count = len(cluster.nodes)
    for node in cluster.nodes.values():
        node.send(_LAST)
    cluster.run_until(  # EVS-E25
        lambda: all(_lasts(node) == count for node in cluster.nodes.values()),
        within=delivery(options) / SECOND,
        what="the last message of every node at every node",
    )
    order = cluster.nodes[1].delivered[-count:]
    for node in cluster.nodes.values():
        if node.delivered[-count:] != order:
            raise Violation("EVS-E19", f"node {node.id} has the last messages in another order than node 1")
    for plugin in cluster.plugins:
        plugin.finish(cluster)


def _lasts(node: SimNode) -> int:
    """How many last messages stand at the end of what this node has delivered."""
    tail = node.delivered[-len(node.cluster.nodes) :]
    return sum(data == _LAST for _, data in tail)
