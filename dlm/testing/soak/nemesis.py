"""What is done to the nodes while clients count: kill -9, graceful leaves, standing still; sometimes to most.

Everything comes from a seed, up to timing. Each fault is mended, and most of the time the cluster is whole
again before the next one.
"""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Callable, Sequence

from dlm.testing.histories import Event, What
from vsync.clock import boot_us
from vsync.testcluster import ClusterError, LocalCluster

__all__ = ["Nemesis"]

Pause = Callable[[float], None]


class Nemesis:
    """Owns the cluster's processes. ``pause(seconds)`` lets time pass; ``kill_client`` kills one of them."""

    def __init__(
        self,
        cluster: LocalCluster,
        chance: random.Random,
        lease_s: float,
        pause: Pause,
        kill_client: Callable[[], None],
        rough: bool = False,
    ) -> None:
        """``lease_s`` is the measure of all pauses. ``rough``: seldom wait for the cluster to be whole again."""
        self.cluster = cluster
        self.counts: Counter[str] = Counter()
        self.down: set[str] = set()  #: nodes that are not expected to run
        self._stopped: set[str] = set()
        self._history = cluster.folder / "nemesis.history"
        self._chance = chance
        self._lease_s = lease_s
        self._pause = pause
        self._patience = 0.3 if rough else 0.85
        self._faults: list[tuple[int, str, Callable[[], None]]] = [
            (8, "kill", self._kill_one),
            (2, "kill twice", self._kill_twice),
            (4, "leave", self._leave_one),
            (4, "stop", self._stop_one),
            (4 if rough else 1, "majority", self._kill_most),
            (1, "client", kill_client),
        ]

    def fault(self) -> None:
        """Break something and mend it. Raises ``ClusterError`` if the cluster does not come together again."""
        weights = [weight for weight, _, _ in self._faults]
        _, kind, act = self._chance.choices(self._faults, weights)[0]
        self.counts[kind] += 1
        act()
        if self._chance.random() < self._patience:
            self.whole()
        self._pause(self._chance.uniform(0.3, 1.0) * self._lease_s)

    def whole(self) -> None:
        """Mend everything and wait until all nodes are in one primary view. Raises ``ClusterError``."""
        for name in sorted(self._stopped):
            self._cont(name)
        for name in sorted(self.down):
            self._start(name)
        names = self.cluster.names
        self.cluster.wait_view(names, timeout_s=30.0)

    # -- faults

    def _kill_one(self) -> None:
        name = self._one()
        self._kill(name)
        self._pause(self._chance.choice((0.0, 0.1, 0.5, 1.5)) * self._lease_s)
        self._start(name)

    def _kill_twice(self) -> None:
        """The second time while it is still finding the others."""
        name = self._one()
        self._kill(name)
        self._start(name)
        self._pause(self._chance.uniform(0.2, 1.0) * self._lease_s)
        self._kill(name)
        self._start(name)

    def _leave_one(self) -> None:
        name = self._one()
        self._note(What.LEAVE, name)
        self.down.add(name)
        code = self.cluster.leave(name)
        if code not in (0, -signal.SIGTERM):  # the latter if it had not yet come so far as to listen for it
            log = self.cluster[name].log
            raise ClusterError(f"node {name} was asked to leave and ended with {code}; its log is {log}")
        self._pause(self._chance.choice((0.0, 0.3)) * self._lease_s)
        self._start(name)

    def _stop_one(self) -> None:
        """For less than it takes to be noticed, or until others hold its locks."""
        name = self._one()
        self._note(What.STOP, name)
        self._stopped.add(name)
        self.cluster.stop(name)
        self._pause(self._chance.choice((0.1, 0.7, 2.0)) * self._lease_s)
        self._cont(name)

    def _kill_most(self) -> None:
        names = self._chance.sample(self._up(), self._chance.choice((2, len(self._up()))))
        for name in names:
            self._kill(name)
            self._pause(self._chance.choice((0.0, 0.3)) * self._lease_s)
        self._chance.shuffle(names)
        for name in names:
            self._start(name)
            self._pause(self._chance.choice((0.0, 0.3)) * self._lease_s)

    # -- single steps

    def _up(self) -> Sequence[str]:
        return [name for name in self.cluster.names if name not in self.down]

    def _one(self) -> str:
        return self._chance.choice(self._up())

    def _kill(self, name: str) -> None:
        self._note(What.KILL, name)
        self.down.add(name)
        self.cluster.kill(name)

    def _start(self, name: str) -> None:
        self._note(What.START, name)
        self.cluster.restart(name)
        self.down.discard(name)

    def _cont(self, name: str) -> None:
        self._note(What.CONT, name)
        self.cluster.cont(name)
        self._stopped.discard(name)

    def _note(self, what: What, name: str) -> None:
        with open(self._history, "ab") as file:  # with the clients' histories: it explains them
            file.write(Event(boot_us(), "nemesis", what, node=name).line())
