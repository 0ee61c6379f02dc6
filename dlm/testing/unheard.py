"""A fault that leases and fences are there for: what a node was told and has told is known to nobody else.

For a moment the packets of one node reach nobody, while its tokens do: it delivers its own messages and acts upon
them, and what the others send stands behind a hole. Then it is cut off, or dies (pitfalls D1, C2, B3).
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from vsync.testing.node import SimNode
from vsync.testing.rules import TYPE_AT
from vsync.wire import FrameType

if TYPE_CHECKING:
    from dlm.testing.workload import LockPlugin

__all__ = ["Unheard"]


class Unheard:
    """Does it again and again, every ``interval`` µs on average, until ``over``."""

    def __init__(self, plugin: LockPlugin, interval: int, rng: Random) -> None:
        self._plugin = plugin
        self._cluster = plugin.cluster
        self._interval = interval
        self._rng = rng
        self.over = not interval
        self._later()

    def _later(self) -> None:
        if not self.over:
            self._cluster.scheduler.after(int(self._rng.expovariate(1 / self._interval)) + 1, self._mute)

    def _mute(self) -> None:
        living = [node for node in self._cluster.nodes.values() if node.up]
        if not living or self.over:
            self._later()
            return
        node = self._rng.choice(living)
        self._cluster.network.drop = lambda src, dst, frame: src == node.id and frame[TYPE_AT] == FrameType.DATA
        moment = self._rng.randint(1, self._cluster.options.timing.token // 2)
        self._cluster.scheduler.after(moment, self._silence, node)

    def _silence(self, node: SimNode) -> None:
        cluster, rng, token = self._cluster, self._rng, self._cluster.options.timing.token
        cluster.network.drop = None
        if not self.over:
            if rng.random() < 0.5:
                cluster.partition({node.id}, set(cluster.nodes) - {node.id})
                cluster.scheduler.after(rng.randint(token, 4 * token), cluster.heal)
            else:
                node.crash()
                cluster.scheduler.after(rng.randint(1, 3 * token), self._plugin.switch_on, node)
        self._later()
