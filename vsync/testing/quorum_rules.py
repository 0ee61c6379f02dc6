"""QUO-Q1 and CHAIN-K8: never two primary components that could both act.

By time alone two nodes can believe in two primary rings for as long as the losers need to notice (a token
timeout); what keeps that harmless is that consecutive primary rings share a member, who leaves the first
before the second can form, so that the first cannot order a message any more. Checked here, in the configuration's
own words and not those of ``vsync.quorum``:

QUO-Q1    A view is primary exactly when its policy says so; neighbours in the chain of primary ids share a node.
CHAIN-K8  Some member of a primary view has the mark of the primary view before it, or knows that it may have been
          one (K7); else all nodes are there, too few of them with a mark, and no older state goes on.
CHAIN-C7  No member of a primary view comes from another cluster.
CHAIN-C8  A view is counted by the roster that goes with the newest mark of its members. From one view of the chain
          to the next it changes by one node at most, so that a quorum before and one after it share a node.

Of policies under which two parts of a cluster may act at once (two_node, none) nothing is judged here.

The chain is of views *in force*. A node that has to install a broken attempt before the next view (K7) goes through
it in an instant: unless a companion worked in it, that view was never anywhere.

QUO-Q2 (one verdict per id, delivered with the view) stands in ``evs_views``.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from vsync.quorum import Says
from vsync.roster import Roster
from vsync.testing.trace import Trace, Viewed
from vsync.testing.violation import Violation
from vsync.types import Entry, Peer, QuorumConfig, RingId, View

__all__ = ["QuorumRules"]


@dataclass(frozen=True, slots=True)
class _Primary:
    view: View
    knows: RingId  #: the newest mark among its members'
    anew: bool  #: too few of them have a mark: primary because all are there


class QuorumRules:
    """Judges the regular views of a cluster with these configured ``peers``."""

    def __init__(self, peers: tuple[Peer, ...], quorum: QuorumConfig | None = None) -> None:
        self._file = Roster.of_file(peers)
        self._quorum = quorum or QuorumConfig()
        self._judged: dict[RingId, _Primary | None] = {}
        self._entered: dict[int, tuple[int, _Primary]] = {}  # by node: since when, if nothing has followed yet
        self._in_force: dict[RingId, _Primary] = {}
        self._chain: list[RingId] = []
        self.on_primary: list[Callable[[View], None]] = []  #: told of each primary view that is in force

    def watch(self, trace: Trace) -> None:
        """Subscribe to what this checker needs."""
        trace.subscribe(Viewed, self.on_viewed)

    @property
    def chain(self) -> list[RingId]:
        """The ids of the primary views in force so far, ascending. The last ones are judged when this is asked."""
        self._settle(None)
        return self._chain

    def on_viewed(self, event: Viewed) -> None:
        """Judge a regular view's verdict; link a new primary into the chain."""
        view, node = event.view, event.who.node
        if self._quorum.policy in ("two_node", "none"):
            return
        if view.transitional:
            since, _ = self._entered.get(node, (None, None))
            if since == event.time:
                del self._entered[node]  # left in the same instant
            return
        self._settle(event.time)
        if view.id not in self._judged:
            self._judged[view.id] = self._judge(view)
        primary = self._judged[view.id]
        if primary is not None and view.id not in self._in_force:
            self._entered[node] = event.time, primary

    def _settle(self, now: int | None) -> None:
        for node, (since, primary) in list(self._entered.items()):
            if since != now:
                del self._entered[node]
                if primary.view.id not in self._in_force:
                    self._link(primary)

    def _judge(self, view: View) -> _Primary | None:
        roster = self._roster(view)
        counted, said = self._count(view, roster)
        everybody = set(roster.nodes) <= set(view.nodes)
        clusters = {entry.lineage for entry in view.entries.values() if not entry.says & Says.UNSURE} - {0}
        if len(clusters) > 1:
            if view.primary:
                raise Violation("CHAIN-C7", f"primary view {view.id} has nodes of lineages {sorted(clusters)}")
        elif any(entry.differs for entry in view.entries.values()) or not set(roster.nodes) & set(view.nodes):
            if view.primary:
                raise Violation("CHAIN-C8", f"primary view {view.id} of strangers, or of nodes whose files differ")
        elif (counted or everybody) != view.primary:
            raise Violation(
                "QUO-Q1", f"view {view.id} of nodes {view.nodes} has {said} and primary={view.primary}"
            )
        knows = max(entry.mark for entry in view.entries.values())
        return _Primary(view, knows, anew=not counted) if view.primary else None

    def _roster(self, view: View) -> Roster:
        """By which the view is counted: not an older one than that of whoever was in the newest primary view."""
        rosters = {entry.roster for entry in view.entries.values()} - {None}
        roster = next((roster for roster in rosters if roster), self._file)
        names = {view.entries[node].names[-1] for node in self._voters(view) if view.entries[node].names}
        newest = {digest for mark, digest in names if mark == max(names)[0] and mark.seq}
        also = {other.digest for entry in view.entries.values() for other in (roster, *entry.also)}
        if len(rosters) > 1 or (newest and roster.version > 1 and not newest & also):
            raise Violation("CHAIN-C8", f"view {view.id} of {view.nodes} is not counted by its newest roster")
        return roster

    def _count(self, view: View, roster: Roster) -> tuple[bool, str]:
        """Whether those of its members that may vote have the votes that it takes."""
        entries = view.entries
        if any(entries[node].says & Says.OVERRIDE for node in view.nodes):
            return True, "an operator's word"
        voters = self._voters(view)
        known = [entries[node] for node in voters or view.nodes]
        if not voters and any(entries[node].says & Says.BOOTSTRAP for node in view.nodes):
            voters = list(view.nodes)
        enough, said = True, "votes"
        for electorate in self._electorates(known, roster):
            have, of = sum(electorate.get(node, 0) for node in voters), sum(electorate.values())
            breaker = min((node for node in electorate if electorate[node]), default=0)
            tie = 2 * have == of and self._quorum.auto_tie_breaker and breaker in voters
            enough, said = enough and (2 * have > of or tie), f"{said}, {have} of {of}"
        if self._quorum.wait_for_all and all(entries[node].says & Says.WAITING for node in voters):
            return False, f"{said}, of nodes that have just started"
        return enough, said

    def _voters(self, view: View) -> list[int]:
        """Nodes with a mark; not those whose mark is of a beginning that came to nothing, as others know."""
        marked = {node: view.entries[node] for node in view.nodes if view.entries[node].mark.seq}
        best = max(marked.values(), key=lambda e: (not e.says & Says.UNSURE, e.mark), default=None)
        return [node for node, entry in marked.items() if best and entry.lineage == best.lineage]

    def _electorates(self, known: Sequence[Entry], roster: Roster) -> list[dict[int, int]]:
        if self._quorum.policy != "last_man_standing" or not any(entry.bases for entry in known):
            return [roster.votes, *(other.votes for other in known[0].also)]
        sure = max(entry.bases[-1][0] for entry in known if entry.bases)
        return [dict(base) for entry in known for ring, base in entry.bases if ring >= sure]

    def _link(self, primary: _Primary) -> None:
        ring = primary.view.id
        self._in_force[ring] = primary
        insort(self._chain, ring)
        place = self._chain.index(ring)
        for one, other in pairwise(self._chain[max(0, place - 1) : place + 2]):
            earlier, later = self._in_force[one], self._in_force[other]
            if not set(earlier.view.nodes) & set(later.view.nodes):
                raise Violation(
                    "QUO-Q1",
                    f"primary {other} {later.view.nodes} shares nobody with primary {one} {earlier.view.nodes}",
                )
            if later.knows < one and not later.anew:
                raise Violation(
                    "CHAIN-K8",
                    f"nobody in primary {other} {later.view.nodes} knows of primary {one} "
                    f"{earlier.view.nodes}: the newest they know is {later.knows}",
                )
            if not later.anew and not self._via_new_beginning(one, later):
                self._step(self._roster(earlier.view), self._roster(later.view), f"{one} and {other}")
        for tell in self.on_primary:
            tell(primary.view)

    def _via_new_beginning(self, one: RingId, later: _Primary) -> bool:
        """Whether a view stands between that was primary because all were there, most without a disk, and that its
        members left at once for this one: who knew of the newest roster has forgotten it.
        """
        between = self._judged.get(later.knows) if one < later.knows else None
        return between is not None and between.anew

    def _step(self, before: Roster, after: Roster, between: str) -> None:
        """CHAIN-C8: what two neighbours in the chain are counted by."""
        if before == after:
            return
        if after.version != before.version + 1:
            raise Violation("CHAIN-C8", f"between {between} the roster goes from {before} to {after}")
        old, new = before.votes, after.votes
        nodes = sorted({*old, *new})
        voting = {node for node in new if before.birth(node) == after.birth(node)}  # others not at first (K8)
        if sum(old.get(node, 0) != new.get(node, 0) for node in nodes) > 1:
            raise Violation("CHAIN-C8", f"between {between} more than one node changes: {before}, {after}")
        for size in range(len(nodes) + 1):
            for some in combinations(nodes, size):
                rest = voting - set(some)
                if self._enough(old, set(some)) and self._enough(new, rest):
                    raise Violation("CHAIN-C8", f"between {between}: {some} of {old} and {rest} of {new}")

    def _enough(self, votes: dict[int, int], nodes: set[int]) -> bool:
        have, of = sum(votes.get(node, 0) for node in nodes), sum(votes.values())
        breaker = min((node for node in votes if votes[node]), default=0)
        return 2 * have > of or (2 * have == of and self._quorum.auto_tie_breaker and breaker in nodes)
