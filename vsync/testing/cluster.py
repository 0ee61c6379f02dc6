"""``SimCluster``: production cores under virtual time.

    with SimCluster(n=5, seed=7) as cluster:
        cluster.settle()
        cluster.partition({1, 2}, {3, 4, 5})
        cluster.advance(3)
        assert cluster[1].view.nodes == (1, 2)
        assert not cluster[1].view.primary

Every event is checked; the first broken property raises ``Violation`` out of ``advance``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from random import Random
from types import TracebackType

from vsync.engine import State
from vsync.service import Service
from vsync.testing.bounds import convergence
from vsync.testing.checkers import Checkers
from vsync.testing.network import Network
from vsync.testing.node import CoreFactory, CoreLike, SimNode
from vsync.testing.options import Options, quiet
from vsync.testing.plugin import Plugin
from vsync.testing.rules import TYPE_AT, Rule
from vsync.testing.scheduler import Scheduler
from vsync.testing.trace import Trace
from vsync.testing.violation import Violation
from vsync.types import ClusterConfig, Peer, Timing

__all__ = ["SimCluster"]

SECOND = 1_000_000


def _production_core(
    config: ClusterConfig,
    incarnation: int,
    services: Sequence[Service],
    stored: bytes | None,
    start_seq: int,
) -> CoreLike:
    from vsync.core import Core

    return Core(config, incarnation, services, stored, start_seq)


class SimCluster:
    """``n`` nodes, ids 1..n, on one virtual clock. Deterministic in ``seed`` and ``options``.

    As a context manager it starts all nodes on entry. ``plugins`` bring services, their workload and
    checkers. Not thread-safe; nothing here waits for real time.
    """

    def __init__(
        self,
        n: int = 5,
        seed: int = 0,
        *,
        options: Options | None = None,
        timing: Timing | None = None,
        plugins: Sequence[Plugin] = (),
        core_factory: CoreFactory = _production_core,
        keep_events: int | None = 4_000,
    ) -> None:
        self.options = options or quiet(seed, n, timing)
        self.rng = Random(f"cluster/{self.options.seed}")
        self.scheduler = Scheduler()
        self.trace = Trace(keep_events)
        self.core_factory = core_factory
        self.plugins = tuple(plugins)
        self.rules: list[Rule] = []  #: nested faults that wait for their frame
        self.on_rule: Callable[[Rule, SimNode, int, bytes], bool] = lambda rule, node, peer, frame: False
        self.on_state: Callable[[SimNode], None] = lambda node: None  #: while rules wait: after each of its inputs
        self.heard: dict[tuple[int, int], tuple[int, bytes]] = {}  #: by receiver and type: the last one
        votes = self.options.votes or (1,) * self.options.nodes
        peers = tuple(Peer(i, f"n{i}", (f"127.0.0.1:{7000 + i}",), vote) for i, vote in enumerate(votes, 1))
        self.checkers = Checkers(self.trace, peers, self.options.timing, self.options.quorum)
        self.network = Network(self.scheduler, self.options.links, self.options.seed, self._arrive)
        self.network.changed = self.disturbed
        config = ClusterConfig(
            "sim",
            1,
            peers,
            self.options.timing,
            packet_bytes=self.options.packet_bytes,
            accelerated=self.options.accelerated,
            send_queue=self.options.send_queue,
            quorum=self.options.quorum,
        )
        self._config = config
        self.nodes = {peer.node: SimNode(self, replace(config, node=peer.node)) for peer in peers}
        self.enlisted: Callable[[SimNode], None] = lambda node: None  #: told of each host that comes later
        for plugin in self.plugins:
            plugin.begin(self)

    def __enter__(self) -> SimCluster:
        for node in self.nodes.values():
            node.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def __getitem__(self, node: int) -> SimNode:
        return self.nodes[node]

    def __iter__(self) -> Iterable[SimNode]:
        return iter(self.nodes.values())

    def _arrive(self, src: int, dst: int, frame: bytes) -> None:
        if self.options.nested:
            self.heard[dst, frame[TYPE_AT]] = (src, frame)
        if dst in self.nodes:
            self.nodes[dst].receive(src, frame)

    def broken(self, node: SimNode, side: str, peer: int, frame: bytes) -> bool:
        """Let the rules see a frame; true if it goes no further."""
        if not node.up:
            return False
        state = node.phase if side == "sent" else node.state
        for rule in self.rules:
            if rule.fires(frame, state, side, node.id):
                self.rules.remove(rule)
                return self.on_rule(rule, node, peer, frame)
        return False

    # -- hosts --------------------------------------------------------------------------------

    def enlist(self, peer: Peer, known: Iterable[Peer], host: SimNode | None = None) -> SimNode:
        """One host more, not running yet; its file lists the nodes that are ``known`` and itself, ``peer``.

        ``host``: one that was dismissed and comes back, with the disk that it has.
        """
        others = [other for other in known if other.node != peer.node]
        peers = tuple(sorted((*others, peer), key=lambda each: each.node))
        config = replace(self._config, node=peer.node, peers=peers)
        if host is None:
            host = SimNode(self, config)
        host.config = config
        hosts = sorted({**self.nodes, peer.node: host}.items())
        self.nodes.clear()
        self.nodes.update(hosts)
        self.enlisted(host)
        return host

    def dismiss(self, node: int) -> SimNode:
        """Take away a host that does not run any more."""
        assert not self.nodes[node].up
        return self.nodes.pop(node)

    # -- time -------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """True virtual time in seconds."""
        return self.scheduler.now / SECOND

    def advance(self, seconds: float) -> None:
        """Let virtual time pass. Raises ``Violation`` at the first broken property."""
        until = self.scheduler.now + round(seconds * SECOND)
        while self.scheduler.step(until):
            pass

    def run_until(
        self, condition: Callable[[], bool], within: float, what: str = "the condition", rule: str = "EVS-E26"
    ) -> None:
        """Let time pass until ``condition()``; raises ``Violation`` unless it comes ``within`` seconds."""
        until = self.scheduler.now + round(within * SECOND)
        while not condition():
            if not self.scheduler.step(until):
                raise Violation(rule, f"{what} did not come within {within:g} s of virtual time")

    # -- trouble ----------------------------------------------------------------------------

    def partition(self, *groups: Iterable[int]) -> None:
        """Cut all links between these groups; nodes in none of them are alone."""
        self.network.partition(*groups, nodes=self.nodes)

    def heal(self) -> None:
        """Join all links again."""
        self.network.heal()

    def disturbed(self) -> None:
        """Something happens to a node or a link: it may cost views (EVS-E27)."""
        self.checkers.liveness.disturbed(self.scheduler.now)

    def crash(self, node: int) -> None:
        """Kill a node's process; its disk stays."""
        self.nodes[node].crash()

    def restart(self, node: int) -> None:
        """Start a process again: a new incarnation with the kept record."""
        self.nodes[node].start()

    @property
    def patience(self) -> int:
        """How long it may take until all is calm, in µs (EVS-E26); of plug-ins, for their own agreement, too."""
        more = max((plugin.patience(self) for plugin in self.plugins), default=0)
        return convergence(self.options) + (2 * self.options.timing.lease if self.plugins else 0) + more

    # -- calm -------------------------------------------------------------------------------

    def unsettled(self) -> str:
        """Empty if all living nodes share one regular view of exactly themselves and have nothing pending."""
        living = [node for node in self.nodes.values() if node.up]
        expected = tuple(node.me for node in living)
        processes = self.checkers.views.processes
        ids = set()
        for node in living:
            if node.leaving:
                return f"node {node.id} is still leaving"
            process = processes[node.me]
            view = process.regular
            if view is None or process.transitional is not None or view.members != expected:
                return f"node {node.id} has {'no view' if view is None else f'view {view.id} {view.nodes}'}"
            engine = getattr(node.core, "engine", None)
            if engine is not None and engine.state is not State.OPERATIONAL:
                return f"node {node.id} has given up view {view.id}"  # before the healing: not a new fault
            ids.add(view.id)
        if len(ids) > 1:
            return f"views {', '.join(map(str, sorted(ids)))} have the same members"
        for node in living:
            numbers = self.checkers.messages.undelivered(node.me)
            if numbers:
                return f"node {node.id} has not delivered its own messages {numbers[:5]}"
        for plugin in self.plugins:
            missing = plugin.settled(self)
            if missing:
                return missing
        return ""

    def settle(self, within: float | None = None) -> None:
        """Run until ``unsettled()`` is empty; raises ``Violation`` (EVS-E12/E26) after ``within`` seconds.

        The default is ``bounds.convergence``; plug-ins have two leases more for their own agreement.
        """
        timing = self.options.timing
        if within is None:
            within = self.patience / SECOND
        until = self.scheduler.now + round(within * SECOND)
        pause = max(timing.join // 4, 1_000)
        missing = "start"
        while missing:
            if self.scheduler.now >= until:
                raise Violation("EVS-E26", f"no calm within {within:g} s after the last fault: {missing}")
            tick = min(until, self.scheduler.now + pause)
            while self.scheduler.step(tick):
                pass
            missing = self.unsettled()
