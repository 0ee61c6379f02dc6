"""One run in two phases: chaos, then everything is healed and must become calm."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from random import Random

from vsync.testing.bounds import check_installed, delivery, idle, idle_safe, views
from vsync.testing.cluster import SimCluster
from vsync.testing.groups_workload import GroupPlugin
from vsync.testing.nemesis import Nemesis, Traffic
from vsync.testing.node import SESSION, SimNode
from vsync.testing.options import Options
from vsync.testing.plugin import Plugin
from vsync.testing.registrar import Registrar
from vsync.testing.rules import Cell
from vsync.testing.trace import Trace
from vsync.testing.violation import Violation

__all__ = ["Measured", "Result", "run"]

Measured = dict[str, tuple[int, int]]

SECOND = 1_000_000
_LAST = b"the last message"
_SELDOM = 20_000  #: new objects between two collections of the youngest ones


@dataclass(slots=True)
class Result:
    """What became of one run. ``cpu`` in seconds, ``virtual`` in µs."""

    options: Options
    trace: Trace
    violation: Violation | None
    virtual: int
    events: int
    frames: int
    messages: int
    views: int
    faults: int
    cpu: float
    fired: Counter[Cell]  #: nested faults, see ``vsync.testing.rules``
    measured: Measured  #: what ``vsync.testing.bounds`` bounds: how much, and its bound

    def line(self) -> str:
        """One line for people."""
        verdict = "ok" if self.violation is None else f"VIOLATION {self.violation.rule}"
        return (
            f"seed {self.options.seed}: {verdict}; {self.virtual / SECOND:.1f} s virtual, "
            f"{self.events} events, {self.frames} frames, {self.messages} messages, "
            f"{self.views} views, {self.faults} faults, {self.cpu:.2f} s CPU, trace {self.trace.hash}"
        )


def run(options: Options, plugins: Sequence[Plugin] = (), keep_events: int | None = 4_000) -> Result:
    """Run the seed. A broken property ends the run and is in the result; nothing else is caught."""
    with _seldom_collected():
        return _run(options, plugins, keep_events)


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """A run makes many objects that stay until its end, and few that refer to themselves: looking for those at
    Python's usual pace takes every tenth moment, and finds nothing.
    """
    before = gc.get_threshold()
    if 0 < before[0] < _SELDOM:
        gc.set_threshold(_SELDOM, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _run(options: Options, plugins: Sequence[Plugin], keep_events: int | None) -> Result:
    began = time.process_time()
    if options.group_interval:
        plugins = (*plugins, GroupPlugin(options.seed, options.group_interval))
    if options.nodes_interval:
        plugins = (*plugins, Registrar(options.seed, options.nodes_interval))
    cluster = SimCluster(options=options, plugins=plugins, keep_events=keep_events)
    nemesis, traffic = Nemesis(cluster), Traffic(cluster)
    cluster.enlisted = traffic.add
    violation: Violation | None = None
    measured: Measured = {}
    try:
        _chaos(cluster, nemesis, traffic)
        _calm(cluster, nemesis, traffic, measured)
    except Violation as found:
        violation = found
    return Result(
        options=options,
        trace=cluster.trace,
        violation=violation,
        virtual=cluster.scheduler.now,
        events=cluster.scheduler.steps,
        frames=cluster.network.sent,
        messages=sum(node.recorder.number for node in cluster.nodes.values()),
        views=len(cluster.checkers.views.configurations),
        faults=nemesis.actions,
        cpu=time.process_time() - began,
        fired=nemesis.fired,
        measured=measured,
    )


def _chaos(cluster: SimCluster, nemesis: Nemesis, traffic: Traffic) -> None:
    """First phase: nodes start one after the other, traffic flows, things break."""
    options = cluster.options
    for node in cluster.nodes.values():
        cluster.scheduler.at(cluster.rng.randint(0, options.start_spread), node.start)
    traffic.begin()
    nemesis.begin()
    if options.bootstrap and not options.lost_disk:  # a word that was true must not outlive what it was about
        cluster.scheduler.after(options.timing.consensus, _operate, cluster, nemesis)
    cluster.advance(options.chaos / SECOND)


def _operate(cluster: SimCluster, nemesis: Nemesis) -> None:
    """An operator who sees all nodes begins the cluster before all of them have met."""
    nodes = list(cluster.nodes.values())
    if cluster.checkers.quorum.chain or not nemesis.active:
        return
    node = cluster.rng.choice(nodes)
    if node.up and not any(each.may_be_primary for each in nodes):
        node.request(SESSION, 0, "node", "bootstrap", {})
    cluster.scheduler.after(cluster.options.timing.consensus, _operate, cluster, nemesis)


def _calm(cluster: SimCluster, nemesis: Nemesis, traffic: Traffic, measured: Measured) -> None:
    """Second phase (EVS-E12, E25..E27): one view of all, all pending delivered, then some messages more."""
    options = cluster.options
    traffic.stop()
    for plugin in cluster.plugins:
        plugin.settle(cluster)
    nemesis.mend()  # nothing that a node does when it goes on may be a reason for a new fault
    # liveness is promised for a stable connected set: from now on nothing is lost
    cluster.network.options = replace(options.links, loss=0.0, reorder=0.0)
    nodes = cluster.nodes.values()
    for plugin in cluster.plugins:
        if isinstance(plugin, Registrar):
            _put_in_order(cluster, plugin)
    cluster.run_until(lambda: all(n.up and not n.leaving for n in nodes), 10.0, "the end of every leave")
    cluster.options = replace(options, nodes=len(nodes))  # the bounds are for those who are there
    _converge(cluster, measured)
    check_installed(cluster.checkers.views)
    _say_last(cluster, measured)
    _say_into_silence(cluster, measured)
    for plugin in cluster.plugins:
        plugin.finish(cluster)
    if not cluster.checkers.quorum.chain:  # the last ones are judged when they are asked for
        raise Violation("QUO-Q1", "no view has ever been primary")


def _put_in_order(cluster: SimCluster, registrar: Registrar) -> None:
    """Commands end, and exactly the nodes run that belong to the cluster; each of these costs a view or two."""
    until = cluster.scheduler.now + 4 * cluster.patience
    while missing := registrar.disorder():
        if cluster.scheduler.now > until:
            raise Violation("CHAIN-C8", f"the set of nodes does not come to rest: {missing}")
        cluster.advance(cluster.options.timing.join / SECOND)


def _converge(cluster: SimCluster, measured: Measured) -> None:
    """E26 and E27."""
    nodes, healed = cluster.nodes.values(), cluster.scheduler.now
    before = {node.me: len(node.recorder.views) for node in nodes}
    cluster.settle()
    measured["E26 µs until all is calm"] = (cluster.scheduler.now - healed, cluster.patience)
    measured["E27 views in a token timeout"] = cluster.checkers.liveness.closest
    most = views(cluster.options)
    for node in nodes:
        seen = before.get(node.me, 0)  # none by a process that was started meanwhile
        regular = (len(node.recorder.views) - seen) // 2  # each has its transitional one
        measured["E27 views until calm"] = max(measured.get("E27 views until calm", (0, most)), (regular, most))
        if regular > most:
            raise Violation("EVS-E27", f"node {node.id} went through {regular} views after the last fault")


def _say_last(cluster: SimCluster, measured: Measured) -> None:
    """E25 and E19: a message of each node, at once."""
    nodes, count, began = cluster.nodes.values(), len(cluster.nodes), cluster.scheduler.now
    for node in nodes:
        node.send(_LAST)
    within = delivery(cluster.options)
    what = "the last message of every node at every node"
    cluster.run_until(lambda: all(_lasts(node) == count for node in nodes), within / SECOND, what, "EVS-E25")
    measured["E25 µs to deliver"] = (cluster.scheduler.now - began, within)
    first = next(iter(nodes))
    order = first.delivered[-count:]
    for node in nodes:
        if node.delivered[-count:] != order:
            raise Violation("EVS-E19", f"node {node.id} has the last messages in another order than {first.id}")


def _say_into_silence(cluster: SimCluster, measured: Measured) -> None:
    """E25 when a node holds the token, and will for long: one node has a message, then one has a SAFE one."""
    nodes, timing, rng = cluster.nodes.values(), cluster.options.timing, Random(f"silence/{cluster.options.seed}")
    for safe, within, name in ((False, idle(cluster.options), ""), (True, idle_safe(cluster.options), " if SAFE")):
        cluster.advance((1.5 * timing.hold + timing.token_retransmit) / SECOND)
        data, began = b"into silence" + name.encode(), cluster.scheduler.now
        sorted(cluster.nodes.items())[rng.randint(1, len(cluster.nodes)) - 1][1].send(data, safe=safe)
        cluster.run_until(
            partial(_all_end_with, nodes, data), within / SECOND, f"a message in an idle ring{name}", "EVS-E25"
        )
        measured[f"E25 µs to deliver in an idle ring{name}"] = (cluster.scheduler.now - began, within)


def _all_end_with(nodes: Collection[SimNode], data: bytes) -> bool:
    return all(node.delivered[-1][1] == data for node in nodes)


def _lasts(node: SimNode) -> int:
    """How many last messages stand at the end of what this node has delivered."""
    tail = node.delivered[-len(node.cluster.nodes) :]
    return sum(data == _LAST for _, data in tail)
