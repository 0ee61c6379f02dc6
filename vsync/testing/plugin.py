"""How a service brings its own workload and checkers into the simulator (``dlm.testing`` does)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vsync.service import Service, Spawn
from vsync.types import ClusterConfig

if TYPE_CHECKING:
    from vsync.testing.cluster import SimCluster
    from vsync.testing.node import SimNode

__all__ = ["Plugin", "no_plugins"]


class Plugin:
    """Override what is needed. Every method may raise ``Violation``; none may touch a core from inside a
    callback.

    Work on a core is done from an event of its own: ``cluster.scheduler.after(delay, f)``.
    """

    def begin(self, cluster: SimCluster) -> None:
        """Before any node starts: keep ``cluster``, schedule the workload."""

    def services(self, config: ClusterConfig) -> Sequence[Service]:
        """New service objects for a node that starts."""
        return ()

    def started(self, node: SimNode) -> None:
        """A process has started (its core too)."""

    def may_stand_still(self, node: SimNode) -> bool:
        """Whether this node's clock may stand still while it is paused: leases are promised for clocks that run."""
        return True

    def stopped(self, node: SimNode) -> None:
        """A process has crashed or left."""

    def reply(self, node: SimNode, session: int, rid: int, ok: bool, data: Any) -> None:
        """An answer reaches a session of this node."""

    def push(self, node: SimNode, session: int, service: str, kind: str, data: Any) -> None:
        """An unsolicited event reaches a session of this node."""

    def program(self, node: SimNode, wanted: Spawn) -> tuple[int, int | None, bytes] | None:
        """A service of this node wants a program run: after how many µs it ends, its exit code and its output.

        What it does to the world must be done from an event of its own. ``None``: it is none of this plug-in's.
        """
        return None

    def carried_out(self, node: SimNode) -> None:
        """All outputs of one input of this node have been carried out."""

    def settle(self, cluster: SimCluster) -> None:
        """Chaos is over, everything is about to be healed: start nothing new."""

    def patience(self, cluster: SimCluster) -> int:
        """How long, in µs, this workload may take longer to become calm than the ring and two leases."""
        return 0

    def settled(self, cluster: SimCluster) -> str:
        """Empty if nothing of this workload is under way any more; otherwise what is still missing."""
        return ""

    def finish(self, cluster: SimCluster) -> None:
        """The run is over and has converged: the last checks."""


def no_plugins(seed: int) -> Sequence[Plugin]:
    """The ring and its groups alone."""
    return ()
