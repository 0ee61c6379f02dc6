"""What is done to a cluster in a storm, by name; each fault mends itself, and says what it expects meanwhile.

Those with ``network`` need namespaces, and ``disk full`` a file system of its own: both need root.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlm.testing.calls import What
from vsync.bench.netns import NetnsCluster
from vsync.clock import boot_us
from vsync.testcluster import ClusterError

if TYPE_CHECKING:
    from dlm.testing.storm.run import Storm

__all__ = ["FAULTS", "Fault", "Faults"]

END_S = 20.0
HEIR_S = 2.0
VIEW_S = 30.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind. ``weight``: how often a random storm has it."""

    name: str
    weight: int
    network: bool
    act: Callable[[Faults], None]


class Faults:
    """Acts on the nodes and clients of a storm. Raises ``ClusterError`` if something expected does not happen."""

    def __init__(self, storm: Storm, chance: random.Random) -> None:
        self.storm = storm
        self.cluster = storm.cluster
        self.chance = chance
        self.down: set[str] = set()  #: nodes that are not expected to run
        self.stopped: set[str] = set()
        self._cut = False

    def mend(self) -> None:
        """Whatever is still broken."""
        if self._cut:
            self.net.join()
            self._cut = False
        for name in sorted(self.stopped):
            self._cont(name)
        for name in sorted(self.down):
            self._start(name)

    @property
    def net(self) -> NetnsCluster:
        """The cluster, if it has a network of its own."""
        assert isinstance(self.cluster, NetnsCluster)
        return self.cluster

    # -- the network

    def minority(self) -> None:
        """Some nodes are cut off; the others go on, without them and with their locks."""
        first = self._one()
        others = [name for name in self.cluster.names if name != first]
        few = [first, *self.chance.sample(others, self.chance.randint(0, (len(others) + 1) // 2 - 1))]
        most = [name for name in self.cluster.names if name not in few]
        self._apart(most, few)
        self.cluster.wait_view(most, VIEW_S)
        self.pause(1.4)
        self.storm.wait_progress(most, "in the majority")
        self._together()

    def alone(self) -> None:
        """Every node is alone; nobody has a majority, and nobody gets anything."""
        self._apart(*([name] for name in self.cluster.names))
        self.storm.until(self._nobody_is_primary, "nodes that are alone are primary", VIEW_S)
        began = boot_us()
        self.pause(1.2)
        ended = boot_us()
        self._together()
        self.storm.notes.poll()
        granted = [t for t in self.storm.notes.grants if began < t < ended]
        if granted:
            raise ClusterError(f"granted while every node was alone, at {granted} µs")

    def one_way(self) -> None:
        """What one node sends to another one goes nowhere, and nobody is told."""
        sender, receiver = self.chance.sample(self.cluster.names, 2)
        self.net.deafen(sender, receiver)
        try:
            self.pause(2.5)
        finally:
            self.net.undeafen(sender, receiver)

    def black_hole(self) -> None:
        """One node has no route to another one; the other way is open."""
        sender, receiver = self.chance.sample(self.cluster.names, 2)
        self.net.blackhole(sender, receiver)
        try:
            self.pause(2.5)
        finally:
            self.net.unblackhole(sender, receiver)

    def stopped_client_cut_off(self) -> None:
        """A client stands still while its node is cut off and its locks go to others; then it goes on."""
        name = self._some_client()
        node = self.storm.notes.node[name]
        rest = [other for other in self.cluster.names if other != node]
        self.storm.signal_client(name, signal.SIGSTOP)
        try:
            self._apart(rest, [node])
            self.cluster.wait_view(rest, VIEW_S)
            self.pause(1.6)
            self._together()
        finally:
            self.storm.signal_client(name, signal.SIGCONT)

    # -- processes

    def stop(self) -> None:
        """A daemon stands still until others have its locks."""
        name = self._one()
        self._stop(name)
        self.cluster.wait_view([other for other in self.cluster.names if other != name], VIEW_S)
        self.pause(1.3)
        self._cont(name)

    def blink(self) -> None:
        """A daemon stands still for less than it takes to be noticed."""
        name = self._one()
        self._stop(name)
        self.pause(0.3)
        self._cont(name)

    def stopped_client(self) -> None:
        """A client stands still; its node answers for it, and nobody gets its locks."""
        name = self._some_client()
        self.storm.signal_client(name, signal.SIGSTOP)
        try:
            self.pause(1.5)
        finally:
            self.storm.signal_client(name, signal.SIGCONT)

    def kill(self) -> None:
        """kill -9 of a daemon."""
        name = self._one()
        self._kill(name)
        self.pause(self.chance.choice((0.0, 0.2, 1.3)))
        self._start(name)

    def kill_client(self) -> None:
        """kill -9 of a client; another one takes its place."""
        self.storm.kill_client(self._some_client())

    def leave(self) -> None:
        """A node leaves on purpose and comes back."""
        name = self._one()
        self._leave(name)
        self.pause(0.3)
        self._start(name)

    def restart_all(self) -> None:
        """All daemons are killed within a moment and started again."""
        names = self.chance.sample(self.cluster.names, len(self.cluster.names))
        for name in names:
            self._kill(name)
        for name in self.chance.sample(names, len(names)):
            self._start(name)

    # -- disks

    def wipe(self) -> None:
        """A node comes back with an empty disk (K8)."""
        name = self._one()
        self._kill(name)
        for path in (self.cluster.folder / name).iterdir():
            path.unlink()
        self.pause(self.chance.choice((0.0, 0.5)))
        self._start(name)

    def disk_full(self) -> None:
        """A node's disk is full: it goes on, or ends rather than take part in what it could forget. Started again
        it must end, as it cannot even store that it has a new life.
        """
        full = self.storm.small_disk
        other = self.chance.choice([name for name in self.cluster.names if name != full])
        self.down.add(full)
        self.storm.fill_disk()
        try:
            self._leave(other)  # a change is what makes it write
            self.pause(0.5)
            self._start(other)
            self.pause(1.0)
            self._kill(full)
            self.storm.fill_disk()  # also what its end has left
            self.cluster.restart(full)
            self.storm.until(lambda: not self.cluster[full].running, "a node starts on a full disk", END_S)
        finally:
            self.storm.free_disk()
        self._start(full)

    # -- single steps

    def pause(self, leases: float) -> None:
        """Let so many leases pass."""
        self.storm.pause(leases * self.storm.lease_s)

    def _one(self) -> str:
        """A node; most of the time one at which somebody keeps a lock."""
        if self.chance.random() < 0.7:
            return self.storm.notes.node[self._some_client()]
        return self.chance.choice([name for name in self.cluster.names if name not in self.down])

    def _some_client(self) -> str:
        """One that keeps a lock, if possible one for which others wait."""
        keepers: list[str] = []
        limit = time.monotonic() + HEIR_S

        def found() -> bool:
            self.storm.notes.poll()
            wanted = time.monotonic() < limit
            keepers[:] = self.storm.notes.keepers(self.storm.client_names, wanted)
            return bool(keepers)

        self.storm.until(found, "nobody keeps a lock", END_S)
        return self.chance.choice(keepers)

    def _apart(self, *groups: Sequence[str]) -> None:
        self._cut = True
        self.net.split(*groups)

    def _together(self) -> None:
        self.net.join()
        self._cut = False

    def _nobody_is_primary(self) -> bool:
        views = [(self.cluster.status(name) or {}).get("view") for name in self.cluster.names]
        return all(view is not None and len(view["members"]) == 1 and not view["primary"] for view in views)

    def _kill(self, name: str) -> None:
        self.down.add(name)
        self.cluster.kill(name)

    def _leave(self, name: str) -> None:
        self.storm.note(What.LEAVING, name=name)
        self.down.add(name)
        code = self.cluster.leave(name)
        if code not in (0, -signal.SIGTERM):  # the latter if it had not yet come so far as to listen for it
            raise ClusterError(f"node {name} was asked to leave and ended with {code}: {self.cluster[name].log}")

    def _start(self, name: str) -> None:
        self.cluster.restart(name)
        self.down.discard(name)

    def _stop(self, name: str) -> None:
        self.stopped.add(name)
        self.cluster.stop(name)

    def _cont(self, name: str) -> None:
        self.cluster.cont(name)
        self.stopped.discard(name)


#: By name. Weights are of those that a random storm draws.
FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        Fault("minority", 4, True, Faults.minority),
        Fault("alone", 2, True, Faults.alone),
        Fault("one way", 3, True, Faults.one_way),
        Fault("black hole", 3, True, Faults.black_hole),
        Fault("stopped client cut off", 2, True, Faults.stopped_client_cut_off),
        Fault("stop", 3, False, Faults.stop),
        Fault("blink", 3, False, Faults.blink),
        Fault("stopped client", 2, False, Faults.stopped_client),
        Fault("kill", 5, False, Faults.kill),
        Fault("kill client", 3, False, Faults.kill_client),
        Fault("leave", 3, False, Faults.leave),
        Fault("restart all", 1, False, Faults.restart_all),
        Fault("wipe", 2, False, Faults.wipe),
        Fault("disk full", 1, True, Faults.disk_full),
    )
}

