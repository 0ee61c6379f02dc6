"""Trouble: the adversary of the first phase of a run, and the traffic that it disturbs."""

from __future__ import annotations

from collections import Counter
from random import Random

from vsync.engine.record import Record
from vsync.testing.cluster import SimCluster
from vsync.testing.node import SimNode
from vsync.testing.rules import Cell, Rule, draw_rule
from vsync.testing.trace import Crashed
from vsync.types import MAX_MESSAGE, RingId

__all__ = ["Nemesis", "Traffic"]


PIECES = (1.5, 2.0, 3.7, 5.0, 30.0)  #: packets that a large message takes: 30 are more than a visit may send
SIZES = (150, 250, 400, 1_400, 9_000)  #: bytes that a narrow path lets through: of small packets or of large ones


class Nemesis:
    """Draws one action after another until ``stop``; what it breaks, ``mend`` repairs."""

    def __init__(self, cluster: SimCluster) -> None:
        self.cluster = cluster
        self.actions = 0
        options = cluster.options
        self._rng = Random(f"nemesis/{options.seed}")
        self._weights = {
            self.crash: options.crash,
            self.leave: options.leave,
            self.partition: options.partition,
            self.one_way: options.one_way,
            self.pause: options.pause,
            self.herd: options.herd,
            self.slow: options.slow,
            self.nested: options.nested,
            self.rumour: options.rumour,
            self.mtu: options.mtu,
            self.foreign: options.foreign,
        }
        if not any(self._weights.values()):
            self._weights[self.partition] = 1
        self.fired: Counter[Cell] = Counter()  #: rules that have met their frame
        cluster.on_rule, cluster.on_state = self._break, self._lure
        cluster.trace.subscribe(Crashed, self._witness)
        self.active = True  #: the first phase goes on
        self._strange: SimNode | None = None  #: has the disk of another cluster

    def begin(self) -> None:
        """Schedule the first action."""
        self._later(self._act)

    def mend(self) -> None:
        """End of the first phase: all links work, all nodes run."""
        self.active = False
        self.cluster.heal()
        self.cluster.rules.clear()
        self._clear()
        for node in self.cluster.nodes.values():
            node.spare()
            node.slow_down(0)
            node.resume()
            self._start(node)

    def _start(self, node: SimNode) -> None:
        """Start the node; if it is just leaving, as soon as it has left."""
        if node.leaving:
            self.cluster.scheduler.after(self.cluster.options.timing.join, self._start, node)
        else:
            node.start()

    def _later(self, action: object, *args: object) -> None:
        delay = int(self._rng.expovariate(1 / self.cluster.options.fault_interval)) + 1
        self.cluster.scheduler.after(delay, action, *args)  # type: ignore[arg-type]

    def _act(self) -> None:
        if not self.active:
            return
        action = self._rng.choices(list(self._weights), list(self._weights.values()))[0]
        action()
        self.actions += 1
        self._later(self._act)

    # -- actions ----------------------------------------------------------------------------

    def crash(self) -> None:
        """Kill one node, or several at once, between two of its outputs; start it again later."""
        living = [node for node in self.cluster.nodes.values() if node.up]
        count = 1 if self._rng.random() < 0.8 else self._rng.randint(1, len(self.cluster.nodes))
        for node in self._rng.sample(living, min(count, len(living))):
            if self._rng.random() < 0.4:
                self._muffle(node)
            node.crash_soon()
            self._restart_later(node)

    def _muffle(self, node: SimNode) -> None:
        """The last words of a node reach only some of the others: what is left of them must do the same."""
        cluster = self.cluster
        for other in cluster.nodes:
            if other != node.id and self._rng.random() < 0.5:
                cluster.network.cut(node.id, other)
        cluster.scheduler.after(cluster.options.timing.token, cluster.heal)

    def leave(self) -> None:
        """One node leaves gracefully."""
        living = [node for node in self.cluster.nodes.values() if node.up and not node.paused]
        if living:
            self._bow_out(self._rng.choice(living))

    def partition(self) -> None:
        """Split the nodes into groups, or heal: a blip, a long cut, or a changed cut."""
        cluster = self.cluster
        if self._rng.random() < 0.35:
            cluster.heal()
            return
        groups: dict[int, set[int]] = {}
        parts = self._rng.choice([2, 2, 2, 3, len(cluster.nodes)])
        for node in cluster.nodes:
            groups.setdefault(self._rng.randrange(parts), set()).add(node)
        cluster.partition(*groups.values())
        if self._rng.random() < 0.5:
            cluster.scheduler.after(self._duration(), cluster.heal)

    def one_way(self) -> None:
        """One link, or all links of one node in one direction, fall silent for a while."""
        cluster = self.cluster
        if len(cluster.nodes) < 2:
            return
        src, dst = self._rng.sample(sorted(cluster.nodes), 2)
        if self._rng.random() < 0.5:
            cluster.network.cut(src, dst)
        else:
            for other in cluster.nodes:
                if other != src:
                    cluster.network.cut(src, other)
        cluster.scheduler.after(self._duration(), cluster.heal)

    def mtu(self) -> None:
        """Links lose all frames beyond some size: JOINs and tokens may pass while packets do not."""
        cluster, rng = self.cluster, self._rng
        src, size = rng.choice(sorted(cluster.nodes)), rng.choice(SIZES)
        both = rng.random() < 0.5
        for other in cluster.nodes:
            if other != src and rng.random() < 0.6:
                cluster.network.limit(src, other, size)
                if both:
                    cluster.network.limit(other, src, size)
        if rng.random() < 0.7:  # else until something else is mended
            cluster.scheduler.after(self._duration(), cluster.heal)

    def pause(self) -> None:
        """Stop a process for a while (SIGSTOP), shorter or longer than the token timeout."""
        living = [node for node in self.cluster.nodes.values() if node.up and not node.paused]
        if living:
            node = self._rng.choice(living)
            self._stop(node)

    def _stop(self, node: SimNode) -> None:
        frozen = self._rng.random() < self.cluster.options.frozen
        node.pause(frozen and all(plugin.may_stand_still(node) for plugin in self.cluster.plugins))
        self.cluster.scheduler.after(self._duration(), node.resume)

    def herd(self) -> None:
        """Power comes back for all at once: all processes end and start again within a moment."""
        spread = self._rng.choice([1, self.cluster.options.timing.join, self.cluster.options.timing.consensus])
        for node in self.cluster.nodes.values():
            node.crash()
            self.cluster.scheduler.after(self._rng.randint(1, spread), self._restart, node, node.stops, 0)

    def slow(self) -> None:
        """A node takes its frames late for a while, then works them off."""
        living = [node for node in self.cluster.nodes.values() if node.up]
        if living:
            node = self._rng.choice(living)
            node.slow_down(int(self.cluster.options.timing.token * self._rng.choice([0.02, 0.1, 0.4])))
            self.cluster.scheduler.after(self._duration(), node.slow_down, 0)

    def foreign(self) -> None:
        """A node starts with the disk of another cluster, which has gone further; later somebody clears that (C7).

        Never one that is a majority alone, and one at a time: else there would be two clusters.
        """
        votes = {peer.node: peer.votes for peer in next(iter(self.cluster.nodes.values())).config.peers}
        fit = [node for node in self.cluster.nodes.values() if 2 * votes[node.id] < sum(votes.values())]
        if self._strange is None and fit:
            node = self._strange = self._rng.choice(fit)
            node.crash()
            node.disk.write(self._record(node, votes).encode())
            node.start()
            self.cluster.scheduler.after(self._duration(), self._clear)

    def _record(self, node: SimNode, votes: dict[int, int]) -> Record:
        seq = node.wall_clock()
        lineage, base = self._rng.getrandbits(60) | 1, tuple(sorted(votes.items()))
        mark = RingId(seq, node.id)
        return Record(seq, mark=mark, lineage=lineage, bases=((mark, base),))

    def _clear(self) -> None:
        node, self._strange = self._strange, None
        if node is not None:
            node.crash()
            node.disk.wipe()
            node.start()

    def rumour(self) -> None:
        """A transport says that a process is dead, and it is not."""
        living = [node for node in self.cluster.nodes.values() if node.up]
        if len(living) > 1:
            node, other = self._rng.sample(living, 2)
            node.peer_gone(other.id)

    def _witness(self, event: Crashed) -> None:
        """Transports see the end of a process, some of them, sooner or later: perhaps after its next start."""
        cluster, rng = self.cluster, self._rng
        for other in cluster.nodes.values():
            if other.id == event.who.node or rng.random() >= cluster.options.evidence:
                continue
            if cluster.network.connected(event.who.node, other.id):
                delay = int(rng.choice([1, 4, 40]) * cluster.options.links.delay_high)
                cluster.scheduler.after(delay, self._tell, other, event.who.node)

    def _tell(self, node: SimNode, gone: int) -> None:
        if self.active:  # what comes after the healing would be a new fault
            node.peer_gone(gone)

    def nested(self) -> None:
        """Something breaks at one frame of one kind in one state; often there is a change to meet it in."""
        self.cluster.rules.append(draw_rule(self._rng, len(self.cluster.nodes)))
        del self.cluster.rules[:-6]
        if self._rng.random() < 0.5:
            self._rng.choice([self.crash, self.partition, self.leave, self.cluster.heal])()

    def _break(self, rule: Rule, node: SimNode, peer: int, frame: bytes) -> bool:
        """A rule has met its frame. True if the frame goes no further."""
        cluster, network = self.cluster, self.cluster.network
        self.fired[rule.name] += 1
        self.actions += 1
        src, dst = (node.id, peer) if rule.side == "sent" else (peer, node.id)
        if rule.action == "crash":
            if rule.side == "sent":
                node.doom()  # some others may still get it
            else:
                cluster.scheduler.at(cluster.scheduler.now, node.crash)  # once it has dealt with it, or just before
            self._restart_later(node)
        elif rule.action == "cut":
            network.cut(src, dst)
            cluster.scheduler.after(self._duration(), cluster.heal)
        elif rule.action == "duplicate":
            for share in (0.01, 0.3):
                again = int(cluster.options.timing.token * share * self._rng.random())
                if dst in cluster.nodes:
                    cluster.scheduler.after(again, cluster.nodes[dst].receive, src, frame)
        elif rule.action == "pause":
            cluster.scheduler.at(cluster.scheduler.now, self._stop, node)
        elif rule.action == "leave":
            cluster.scheduler.at(cluster.scheduler.now, self._bow_out, node)
        return rule.action in ("drop", "cut") or (rule.action == "crash" and self._rng.random() < 0.5)

    def _lure(self, node: SimNode) -> None:
        """A node has come to a state: what a rule waits for in it may need help."""
        cluster, now = self.cluster, self.cluster.scheduler.now
        for rule in cluster.rules:
            if not rule.lures or rule.state != node.state or rule.node not in (None, node.id):
                continue
            if rule.takes_a_leave:
                rule.lures = 0
                cluster.scheduler.at(now, self._bow_out, node)
            elif rule.side == "received" and (node.id, rule.kind) in cluster.heard:
                rule.lures -= 1
                cluster.scheduler.at(now, node.receive, *cluster.heard[node.id, rule.kind])

    def _bow_out(self, node: SimNode) -> None:
        if node.up and not node.paused:
            node.leave()
            self._restart_later(node)

    def _duration(self) -> int:
        """From a blip to much longer than it takes to notice."""
        return int(self.cluster.options.timing.token * self._rng.choice([0.05, 0.3, 1.0, 1.5, 3.0]))

    def _restart_later(self, node: SimNode) -> None:
        timing = self.cluster.options.timing
        fast = self._rng.random() < self.cluster.options.fast_restart
        delay = self._rng.randint(1, timing.join) if fast else self._rng.randint(timing.join, 3 * timing.token)
        self.cluster.scheduler.after(delay, self._restart, node, node.stops, 0)

    def _restart(self, node: SimNode, stops: int, tries: int) -> None:
        """Start the node ``node`` – if it has really ended by now; a slow death is waited for."""
        if not self.active:
            return
        if node.up and node.stops == stops and tries < 50:
            self.cluster.scheduler.after(self.cluster.options.timing.join, self._restart, node, stops, tries + 1)
            return
        if not node.up and self._rng.random() < self.cluster.options.lost_disk:
            node.disk.wipe()
        node.start()


class Traffic:
    """Every node submits numbered messages at random times until ``stop``."""

    def __init__(self, cluster: SimCluster) -> None:
        self.cluster = cluster
        self._rng = Random(f"traffic/{cluster.options.seed}")
        self._chats = Random(f"traffic/chat/{cluster.options.seed}")
        self._active = True

    def begin(self) -> None:
        """Schedule the first message of every node."""
        for node in self.cluster.nodes.values():
            self._later(node)

    def add(self, node: SimNode) -> None:
        """One host more."""
        self._later(node)

    def stop(self) -> None:
        """No further messages, also not of conversations: sixty turns of a slow ring outlast the bounds."""
        self._active = False
        for node in self.cluster.nodes.values():
            node.recorder.hush()

    def _later(self, node: SimNode) -> None:
        delay = int(self._rng.expovariate(1 / self.cluster.options.send_interval)) + 1
        self.cluster.scheduler.after(delay, self._send, node)

    def _send(self, node: SimNode) -> None:
        if not self._active:
            return
        rng, burst = self._rng, 1
        if rng.random() < 0.05:
            burst = rng.randint(2, 30)
        for _ in range(burst):
            options = self.cluster.options
            big = options.big and rng.random() < options.big
            safe = bool(options.safe and rng.random() < options.safe)
            size = int(options.packet_bytes * rng.choice(PIECES)) if big else rng.randrange(0, 64)
            size = min(size, MAX_MESSAGE - 100)
            chat = self._chats.randint(5, 60) if self._chats.random() < options.chat else 0
            node.send(size=size, safe=safe, chat=chat)
        self._later(node)
