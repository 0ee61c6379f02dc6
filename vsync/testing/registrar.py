"""An operator who changes the set of nodes while everything breaks: adds, removes, replaces, moves votes.

Commands go to any node and may get lost with it or with its view; the operator gives up waiting after a while and
goes on from what a node in a primary view says is so. A node that is added starts before or after that, with or
without the disk of a former life; one that is replaced comes back with an empty one; who was removed goes on until
it is stopped, a moment later.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from vsync.roster import Roster
from vsync.testing.plugin import Plugin
from vsync.types import Peer

if TYPE_CHECKING:
    from vsync.testing.cluster import SimCluster
    from vsync.testing.node import SimNode

__all__ = ["Registrar"]

SESSION = 1  #: of the operator at every node: the recorder's
FIRST_RID = 1 << 20
SPARE = 2  #: nodes more than at the beginning, at most
LEAST = 2


@dataclass(slots=True)
class _Under:
    """A command that is under way."""

    kind: str
    node: int
    rid: int
    until: int  #: virtual time at which it is not waited for any more


class Registrar(Plugin):
    """Draws a command every ``interval`` µs on average until chaos is over; then puts the hosts in order."""

    def __init__(self, seed: int, interval: int) -> None:
        self.done: dict[str, int] = {}  #: commands by kind that were in force when they were answered
        self.refused: dict[str, int] = {}  #: others by code
        self._rng = Random(f"registrar/{seed}")
        self._interval = interval
        self._active = True
        self._rid = FIRST_RID
        self._under: _Under | None = None
        self._retired: dict[int, SimNode] = {}  # hosts whose nodes were removed, with their disks
        self._last: Roster | None = None  # the last one that was in force, as far as the operator has seen

    def begin(self, cluster: SimCluster) -> None:
        self.cluster = cluster
        self._most = len(cluster.nodes) + SPARE
        self._later()
        cluster.scheduler.after(cluster.options.timing.join, self._tidy)

    def settle(self, cluster: SimCluster) -> None:
        self._active = False
        self._settled = cluster.scheduler.now

    def reply(self, node: SimNode, session: int, rid: int, ok: bool, data: Any) -> None:
        under = self._under
        if rid < FIRST_RID or under is None or under.rid != rid:
            return
        self._under = None
        if ok:
            self.done[under.kind] = self.done.get(under.kind, 0) + 1
        else:
            self.refused[data["code"]] = self.refused.get(data["code"], 0) + 1

    # -- what is so --------------------------------------------------------------------------

    def roster(self) -> Roster | None:
        """What counts in the newest primary view that is in force, as somebody who is in it says."""
        inside = [n for n in self.cluster.nodes.values() if n.up and n.view is not None and n.view.primary]
        inside = [n for n in inside if n.state == "operational"]
        newest = max(inside, key=lambda n: (n.view.id, n.id) if n.view else ((0, 0), 0), default=None)
        if newest is not None:
            self._last = newest.core.roster  # type: ignore[attr-defined]
        return self._last if newest is not None else None

    def disorder(self) -> str:
        """Empty if no command is under way and exactly the nodes of the roster run."""
        roster = self.roster()
        if roster is None:
            return "no view is primary"
        for node in self.cluster.nodes.values():
            if node.up and node.core.nodes.status()["under_way"]:  # type: ignore[attr-defined]
                return f"a command waits at node {node.id}"
        running = {node.id for node in self.cluster.nodes.values() if node.up and not node.leaving}
        odd = running ^ set(roster.nodes)
        return f"nodes {sorted(odd)} should run or stop" if odd else ""

    def _tidy(self) -> None:
        """Stop who was removed, start who belongs to the cluster and was never started, or was given up."""
        cluster, now = self.cluster, self.cluster.scheduler.now
        if self._under is not None and now > self._under.until:
            self._under = None
        roster, busy = self.roster(), self._under.node if self._under is not None else 0
        if roster is not None:
            for node in [n for n in cluster.nodes.values() if n.id not in roster.nodes and n.id != busy]:
                node.crash()
                self._retired[node.id] = cluster.dismiss(node.id)
            for peer in roster.peers:
                if peer.node not in cluster.nodes:
                    self._host(peer, roster).start()
        elif not self._active and now > self._settled + cluster.patience and cluster.options.lost_disk:
            self._write_files(anew=now > self._settled + 2 * cluster.patience)
        cluster.scheduler.after(cluster.options.timing.token, self._tidy)

    def _write_files(self, anew: bool) -> None:
        """Too many disks are lost: what is left are the files, and the operator writes the last roster there.

        ``anew``: that was not enough, so all disks are emptied.
        """
        told = [n.core.roster for n in self.cluster.nodes.values() if n.up]  # type: ignore[attr-defined]
        last = max([*told, *([self._last] if self._last else [])], key=lambda roster: roster.version)
        for peer in last.peers:
            if peer.node not in self.cluster.nodes:
                self._host(peer, last).start()
        for node in list(self.cluster.nodes.values()):
            peer = last.peer(node.id)
            if anew or peer is None or (node.config.peers != last.peers and not node.may_be_primary):
                node.crash()
            if anew:
                node.disk.wipe()
            if peer is None:
                self._retired[node.id] = self.cluster.dismiss(node.id)
            elif not node.up:
                self.cluster.enlist(peer, last.peers, node).start()

    # -- what the operator does --------------------------------------------------------------

    def _later(self) -> None:
        self.cluster.scheduler.after(int(self._rng.expovariate(1 / self._interval)) + 1, self._act)

    def _act(self) -> None:
        if not self._active:
            return
        self._later()
        roster = self.roster()
        if roster is None or self._under is not None:
            return
        rng = self._rng
        kind = rng.choice(["add", "add", "remove", "replace", "set"])
        if kind == "add" and len(roster.nodes) < self._most:
            self._add(roster)
        elif kind == "remove" and len(roster.nodes) > LEAST:
            self._command("remove", rng.choice(roster.nodes))
        elif kind == "replace":
            self._replace(rng.choice(roster.nodes), roster)
        elif kind == "set":
            peer = rng.choice(roster.peers)
            self._command("set", peer.node, votes=max(peer.votes + rng.choice([-1, 1, 1, 2]), 0))

    def _add(self, roster: Roster) -> None:
        rng = self._rng
        fresh = max([*roster.nodes, *roster.gone, *self._retired, *self.cluster.nodes]) + 1
        back = sorted(set(self._retired) - set(roster.nodes))
        node = rng.choice(back) if back and rng.random() < 0.5 else fresh
        peer = Peer(node, f"n{node}", (f"127.0.0.1:{7000 + node}",), rng.choice([0, 1, 1, 1, 2]))
        host = self._host(peer, roster)
        if rng.random() < 0.5:
            host.disk.wipe()
        self.cluster.scheduler.after(rng.randrange(2 * self.cluster.options.timing.token), self._start, host)
        self._command("add", node, name=peer.name, addresses=list(peer.addresses), votes=peer.votes)

    def _start(self, host: SimNode) -> None:
        if self.cluster.nodes.get(host.id) is host:
            host.start()

    def _host(self, peer: Peer, roster: Roster) -> SimNode:
        return self.cluster.enlist(peer, roster.peers, self._retired.pop(peer.node, None))

    def _replace(self, node: int, roster: Roster) -> None:
        """The machine dies, if the others are still a majority; another one gets its id, now or when they know."""
        host = self.cluster.nodes.get(node)
        if host is None or 2 * roster.votes[node] >= sum(roster.votes.values()):
            return
        host.crash()
        host.disk.wipe()
        timing = self.cluster.options.timing
        self.cluster.scheduler.after(self._rng.randrange(timing.join, 3 * timing.token), self._start, host)
        self.cluster.scheduler.after(timing.token + timing.consensus, self._command, "replace", node)

    def _command(self, kind: str, node: int, **args: Any) -> None:
        willing = [n for n in self.cluster.nodes.values() if n.up and n.view is not None and n.view.primary]
        if not willing or self._under is not None:
            return
        self._rid += 1
        patience = 4 * self.cluster.options.timing.token
        self._under = _Under(kind, node, self._rid, self.cluster.scheduler.now + patience)
        self.cluster.disturbed()
        self._rng.choice(willing).request(SESSION, self._rid, "nodes", kind, {"node": node, **args})
