"""QUO-Q1: never two primary components that could both act.

By time alone two nodes can believe in two primary rings for as long as the losers need to notice (a token
timeout); what keeps that harmless is that consecutive primary rings share a member, who leaves the first
before the second can form, so that the first cannot order a message any more. That is what is checked here:
every primary ring holds more than half of the votes – a node without a mark has none, unless all configured nodes
are there (K8) –, and neighbours in the chain of primary ids share a
node. QUO-Q2 (one verdict per id, delivered with the view) stands in ``evs_views``.
"""

from __future__ import annotations

from bisect import insort

from vsync.testing.trace import Trace, Viewed
from vsync.testing.violation import Violation
from vsync.types import Peer, RingId

__all__ = ["QuorumRules"]


class QuorumRules:
    """Judges the primary regular views of a cluster with these configured ``peers``."""

    def __init__(self, peers: tuple[Peer, ...]) -> None:
        self._votes = {peer.node: peer.votes for peer in peers}
        self._primaries: dict[RingId, tuple[int, ...]] = {}
        self.chain: list[RingId] = []  #: ids of primary views, ascending

    def watch(self, trace: Trace) -> None:
        """Subscribe to what this checker needs."""
        trace.subscribe(Viewed, self.on_viewed)

    def on_viewed(self, event: Viewed) -> None:
        """Judge a regular view's verdict; link a new primary into the chain."""
        view = event.view
        if view.transitional or view.id in self._primaries:
            return
        marked = [node for node in view.nodes if view.entries[node].mark.seq]
        voters = marked or (view.nodes if len(view.nodes) == len(self._votes) else ())
        votes = sum(self._votes[node] for node in voters)
        majority = 2 * votes > sum(self._votes.values()) or len(view.nodes) == len(self._votes)
        if majority != view.primary:
            raise Violation(
                "QUO-Q1",
                f"view {view.id} of nodes {view.nodes} has {votes} of {sum(self._votes.values())} votes "
                f"and primary={view.primary}",
            )
        if not view.primary:
            return
        self._primaries[view.id] = view.nodes
        insort(self.chain, view.id)
        place = self.chain.index(view.id)
        for neighbour in self.chain[max(0, place - 1) : place + 2]:
            if not set(view.nodes) & set(self._primaries[neighbour]):
                raise Violation(
                    "QUO-Q1",
                    f"primary {view.id} {view.nodes} shares nobody with primary {neighbour} "
                    f"{self._primaries[neighbour]}",
                )
