"""A perfect bus for whole lock managers: one totally ordered queue, views by script, clients that keep score.

No engine is involved: the *test* says which member delivers which prefix of a ring, who goes together from one ring
to the next, and what a transitional set still delivers; so every scenario of the pitfalls can be set up exactly.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from dlm.messages import TAG, Kind, decode
from dlm.modes import COMPATIBLE, CR, CW, EX, NL, PR
from dlm.service import DlmService
from vsync.service import Credentials
from vsync.types import NO_RING, ClusterConfig, Entry, Member, Peer, RingId, Timing, View

LEASE = Timing().lease
CLIENT = Credentials(100, 0, 0, "client")
MS = 1_000


class FakeHost:
    """What a service may do, recorded."""

    def __init__(self, node: Node, config: ClusterConfig, me: Member) -> None:
        self.node = node
        self.config = config
        self.me = me
        self.view: View | None = None
        self.lease_basis: int | None = None
        self.last_token = 0
        self.stable = 0
        self.reformed: list[str] = []

    def submit(self, payload: bytes) -> None:
        self.node.queue.append(payload)
        self.node.bus.submitted += 1

    def reply(self, session: int, rid: int, result: Any) -> None:
        if rid:
            self.node.answer(session, rid, result)

    def refuse(self, session: int, rid: int, code: str, message: str, **more: Any) -> None:
        if rid:
            self.node.answer(session, rid, code)
            if not more.get("flags"):
                self.node.bus.kept(self.node, rid)

    def push(self, session: int, service: str, kind: str, data: Any) -> None:
        self.node.pushed(session, kind, data)

    def event(self, name: str, **fields: Any) -> None:
        pass

    def hurry(self) -> None:
        """The bus has no token."""

    def reform(self, reason: str) -> None:
        self.reformed.append(reason)

    def spawn(self, service: str, ticket: int, argv: Sequence[str], stdin: bytes, timeout_us: int) -> None:
        self.node.bus.spawn(self.node, ticket, argv, stdin, timeout_us)

    def kill(self, service: str, ticket: int) -> None:
        self.node.bus.kill_program(self.node, ticket)


class Ring:
    """One configuration: the sequence of (origin, payload) ordered in it, and who has delivered how much."""

    def __init__(self, ring: RingId, members: tuple[Member, ...], primary: bool) -> None:
        self.id = ring
        self.members = members
        self.primary = primary
        self.log: list[tuple[Member, bytes]] = []


class Node:
    """One life of one node with its service and its local clients."""

    def __init__(self, bus: Bus, node: int, incarnation: int) -> None:
        self.bus = bus
        self.me = Member(node, incarnation)
        self.queue: list[bytes] = []  #: submitted, not yet sequenced; survives view changes (EVS-E14)
        self.ring: Ring | None = None
        self.reached: list[tuple[View, Callable[[], None]]] = []  #: attempts that it has not installed yet
        self.delivered = 0
        self.alive = True
        self.answers: dict[int, Any] = {}
        self.pushes: list[tuple[int, str, Any]] = []
        self.host = FakeHost(self, bus.config(node), self.me)
        self.service = DlmService(self.host.config)
        self.service.attach(self.host, bus.now)

    @property
    def id(self) -> int:
        return self.me.node

    @property
    def table(self) -> Any:
        return self.service.table

    def answer(self, session: int, rid: int, result: Any) -> None:
        assert rid not in self.answers, f"request {rid} is answered twice: {self.answers[rid]!r}, {result!r}"
        self.answers[rid] = result
        self.bus.on_answer(self, session, rid, result)

    def pushed(self, session: int, kind: str, data: Any) -> None:
        self.pushes.append((session, kind, data))
        if kind == "lost":
            self.bus.handles.pop((self.me, session, data["h"]), None)

    def deliver_next(self, installing: bool = False) -> None:
        assert self.ring is not None
        origin, payload = self.ring.log[self.delivered]
        self.delivered += 1
        self.service.deliver(origin, self.delivered, payload, installing, self.bus.now)


class Held:
    """A grant that a client was told."""

    def __init__(self, key: bytes, mode: int, fence: int, generation: int) -> None:
        self.key, self.mode, self.fence, self.generation = key, mode, fence, generation
        self.before: tuple[int, int] | None = None  #: (request, mode before it): a conversion is on its way


class Bus:
    """N lock managers, one clock, and an account of what the clients believe."""

    def __init__(self, nodes: int = 3, bootstrap: bool = True) -> None:
        self.now = 1_000_000
        self.size = nodes
        self.submitted = 0
        self.seq = 9
        self.rid = 0
        self.h = 0
        self.requests: dict[int, tuple[Node, int, str, dict[str, Any]]] = {}
        self.handles: dict[tuple[Member, int, int], Held] = {}
        self.highest: dict[bytes, dict[int, int]] = {}  #: by name and mode: the highest fence told
        self.nodes: dict[int, Node] = {}
        self.incarnations: dict[int, int] = {}
        self.marks: dict[int, RingId] = {}  #: the newest primary view each node has stored (K8); survives deaths
        self.batches: dict[tuple[Member, int, int], list[bytes]] = {}  #: multi-locks asked for: their names, sorted
        self.abandoned: set[int] = set()  #: requests whose client has gone
        for node in range(1, nodes + 1):
            self.boot(node)
        if bootstrap:
            self.view(range(1, nodes + 1))
            self.advance(LEASE + 100 * MS)

    def config(self, node: int) -> ClusterConfig:
        peers = tuple(Peer(i, f"n{i}", (f"127.0.0.1:{5000 + i}",)) for i in range(1, self.size + 1))
        return ClusterConfig("test", node, peers)

    def __getitem__(self, node: int) -> Node:
        return self.nodes[node]

    def alive(self) -> list[Node]:
        return [node for _, node in sorted(self.nodes.items()) if node.alive]

    # -- lives ----------------------------------------------------------------------------------------------

    def boot(self, node: int) -> Node:
        """Start (or restart) a node; sessions 1 and 2 are open."""
        self.incarnations[node] = self.incarnations.get(node, 0) + 1
        fresh = self.nodes[node] = Node(self, node, self.incarnations[node])
        for session in (1, 2):
            fresh.service.open(session, CLIENT, self.now)
        return fresh

    def spawn(self, node: Node, ticket: int, argv: Sequence[str], stdin: bytes, timeout_us: int) -> None:
        """A service wants a program run; see ``tests/dlm/fencing.py``."""
        raise NotImplementedError

    def kill_program(self, node: Node, ticket: int) -> None:
        """.. or ended."""
        raise NotImplementedError

    def kill(self, node: int) -> None:
        """The daemon is gone; what its clients hold stays valid until the lease ends (D1)."""
        self.nodes[node].alive = False

    # -- order and delivery ---------------------------------------------------------------------------------

    def sequence(self, *nodes: int) -> None:
        """Put everything these nodes have submitted into the order of their ring; nobody delivers yet."""
        for node in nodes or [n.id for n in self.alive()]:
            member = self.nodes[node]
            if member.alive and member.ring is not None:
                member.ring.log.extend((member.me, payload) for payload in member.queue)
                member.queue.clear()

    def deliver(self, *nodes: int, count: int = 1 << 30) -> None:
        """These nodes (default: all) deliver up to ``count`` messages each."""
        for node in nodes or [n.id for n in self.alive()]:
            member = self.nodes[node]
            for _ in range(count):
                if not member.alive or member.ring is None or member.delivered == len(member.ring.log):
                    break
                member.deliver_next()

    def run(self) -> None:
        """Sequence and deliver until nothing moves."""
        for _ in range(200):
            if not self.busy:
                self.settle()
                if not self.work() and not self.busy:
                    return
            self.sequence()
            self.deliver()
            self.check()
        raise AssertionError("the bus does not come to rest")

    @property
    def busy(self) -> bool:
        """Whether something is to be sequenced or delivered."""
        return any(n.queue or n.delivered < len(n.ring.log) for n in self.alive() if n.ring)

    def work(self) -> bool:
        """Whose time has come does something. Whether that is anybody."""
        due = [node for node in self.alive() if (node.service.next_deadline() or self.now + 1) <= self.now]
        for node in due:
            node.service.fire(self.now)
        return bool(due)

    def settle(self) -> None:
        """A token tells everybody in a whole ring what all its members have; it is none that renews a lease."""
        for node in self.alive():
            if node.ring is not None and self.whole(node.ring):
                node.host.stable = 1 + min(self.nodes[member.node].delivered for member in node.ring.members)
                node.service.token(self.now)

    def tokens(self) -> None:
        """One rotation in every ring."""
        for node in self.alive():
            if node.ring is not None and self.whole(node.ring):
                node.host.lease_basis = node.host.last_token = self.now
        self.settle()

    def advance(self, micros: int, step: int = 50 * MS) -> None:
        """Let time pass in small steps, with tokens, timers and deliveries."""
        end = self.now + micros
        while self.now < end:
            self.now = min(end, self.now + step)
            self.tokens()
            for node in self.alive():
                due = node.service.next_deadline()
                if due is not None and due <= self.now:
                    node.service.fire(self.now)
            self.run()

    def whole(self, ring: Ring) -> bool:
        """Whether a token can go round: every member is alive and in this ring."""
        members = [self.nodes[member.node] for member in ring.members]
        return all(n.alive and n.ring is ring and n.me in ring.members for n in members)

    # -- views ----------------------------------------------------------------------------------------------

    def view(
        self,
        nodes: Iterable[int],
        primary: bool | None = None,
        rest: Mapping[int, int] | None = None,
        rng: random.Random | None = None,
        late: Container[int] = (),
    ) -> RingId:
        """A new ring of these nodes. Members from one old ring recover the longest prefix among them, then deliver
        in the transitional view what else they have (``rest``: by a unit's lowest node, how many old messages;
        with ``rng``: a random longer prefix, and of what follows a random part of the unit's own messages).
        Who is ``late`` only reaches the end of the attempt, and installs it on the way into its next view (K7).
        """
        chosen = [self.nodes[node] for node in sorted(nodes)]
        self.seq += 3
        ring_id = RingId(self.seq, chosen[0].id)
        primary = len(chosen) * 2 > self.size if primary is None else primary
        entries = {
            n.id: Entry(
                n.me,
                n.ring.id if n.ring else NO_RING,
                1,
                {TAG: n.service.announce([view for view, _ in n.reached])},
                mark=self.marks.get(n.id, NO_RING),
            )
            for n in chosen
        }
        members = tuple(n.me for n in chosen)
        ring = Ring(ring_id, members, primary)
        units: dict[RingId, list[Node]] = {}
        for n in chosen:
            n.host.lease_basis = None
            units.setdefault(entries[n.id].old_ring, []).append(n)
        for old_ring, unit in sorted(units.items()):
            upto = max(n.delivered for n in unit)
            others: list[int] = list(range(upto, upto + (rest or {}).get(unit[0].id, 0)))
            log = unit[0].ring.log if unit[0].ring else []
            if rng is not None:
                upto = rng.randint(upto, len(log))
                own = {n.me for n in unit}
                others = [i for i in range(upto, len(log)) if log[i][0] in own and rng.random() < 0.5]
            self._install(unit, old_ring, ring, entries, upto, others, late)
        for n in chosen:
            n.ring, n.delivered = ring, 0
            if primary:
                self.marks[n.id] = ring_id
            n.host.lease_basis = None
        self.tokens()
        return ring_id

    def _install(
        self, unit: list[Node], old: RingId, ring: Ring, entries: dict[int, Entry], upto: int, others: list[int],
        late: Container[int],
    ) -> None:  # fmt: skip
        together = tuple(n.me for n in unit) if old != NO_RING else ()
        for n in unit:
            previous = n.ring.members if n.ring else ()
            joined = tuple(m for m in ring.members if m not in previous)
            left = tuple(m for m in previous if m not in ring.members)
            trans = View(ring.id, together, (), left, ring.primary, True, "test", entries, old)
            regular = View(ring.id, ring.members, joined, left, ring.primary, False, "test", entries, old)
            enter = partial(self._enter, n, n.ring, n.delivered, trans, regular, upto, others)
            n.reached.append((regular, enter))
            if n.id not in late:
                for _, install in n.reached:
                    install()
                n.reached.clear()

    def _enter(
        self, n: Node, old: Ring | None, delivered: int, trans: View, regular: View, upto: int, others: list[int]
    ) -> None:
        n.ring, n.delivered = old, delivered
        if old is not None:
            while n.delivered < upto:
                n.deliver_next(installing=True)
            n.service.view(trans, self.now)
            for index in others:
                n.delivered = index
                n.deliver_next(installing=True)
        n.host.view = regular
        n.service.view(regular, self.now)

    # -- clients --------------------------------------------------------------------------------------------

    def call(self, node: int, /, verb: str, session: int = 1, **args: Any) -> int:
        """Start a request; its number."""
        self.rid += 1
        member = self.nodes[node]
        self.requests[self.rid] = (member, session, verb, args)
        if verb == "unlock":
            self.handles.pop((member.me, session, args["h"]), None)  # it ends when the client calls (D8)
        for row in args["locks"] if verb == "unlock_all" else ():
            self.handles.pop((member.me, session, row["h"]), None)
        held = self.handles.get((member.me, session, args.get("h", 0)))
        if held is not None and held.before is None and verb == "convert":
            held.before = self.rid, held.mode
            held.mode = NL if args.get("convdeadlk") else self._both(held.mode, args["mode"])
        member.service.request(session, self.rid, verb, args, self.now)
        return self.rid

    def lock(self, node: int, name: bytes = b"R", mode: int = 5, session: int = 1, **args: Any) -> tuple[int, int]:
        """Ask for a lock: (request number, handle number). Nobody else asks for the same owner, unless told so."""
        self.h += 1
        args.setdefault("owner", self.h)
        return self.call(node, "lock", session, h=self.h, name=name, mode=mode, **args), self.h

    def lock_all(
        self, node: int, *names: bytes | tuple[bytes, int], session: int = 1, **args: Any
    ) -> tuple[int, int]:
        """Ask for several locks at once (EX unless said otherwise): (request number, first handle number)."""
        locks = [name if isinstance(name, tuple) else (name, EX) for name in names]
        first, self.h = self.h + 1, self.h + len(locks)
        self.batches[self.nodes[node].me, session, first] = sorted(name for name, _ in locks)
        args.setdefault("owner", first)
        return self.call(node, "lock_all", session, h=first, locks=locks, **args), first

    def unlock_all(self, node: int, first: int, count: int, session: int = 1) -> int:
        """Release all locks of a multi-lock."""
        return self.call(node, "unlock_all", session, locks=[{"h": first + index} for index in range(count)])

    def result(self, rid: int) -> Any:
        """The answer of a request: a dict, an error code, or ``None`` if it still waits."""
        return self.requests[rid][0].answers.get(rid)

    def granted(self, rid: int) -> bool:
        answer = self.result(rid)
        return isinstance(answer, dict) and ("fence" in answer or "locks" in answer)

    def close(self, node: int, session: int = 1) -> None:
        """A client dies; its handles end first (D10)."""
        member = self.nodes[node]
        for who in [w for w in self.handles if w[0] == member.me and w[1] == session]:
            del self.handles[who]
        for rid, (asker, asking, *_) in self.requests.items():
            if asker is member and asking == session and rid not in member.answers:
                self.abandoned.add(rid)
        member.service.close(session, self.now)

    def kept(self, node: Node, rid: int) -> None:
        """A request has failed; a conversion that could have given up the old mode has not."""
        _, session, _, args = self.requests[rid]
        held = self.handles.get((node.me, session, args.get("h", 0)))
        if held is not None and held.before is not None and held.before[0] == rid:
            held.mode, held.before = held.before[1], None

    @staticmethod
    def _both(old: int, new: int) -> int:
        """What both modes allow: that is left of a handle while it is converted (D8)."""
        return CR if {old, new} == {CW, PR} else min(old, new)

    def on_answer(self, node: Node, session: int, rid: int, result: Any) -> None:
        """Keep the account of what clients hold."""
        _, _, verb, args = self.requests[rid]
        if verb not in ("lock", "convert", "lock_all") or not isinstance(result, dict):
            return
        if verb == "lock_all":
            names = self.batches[node.me, session, args["h"]]
            for name, row in zip(names, result["locks"], strict=True):
                self._told(node, session, row["h"], args.get("space", "").encode() + name, row)
        else:
            old = self.handles.get((node.me, session, args["h"]))
            key = args.get("space", "").encode() + args["name"] if verb == "lock" else old.key if old else b"?"
            self._told(node, session, args["h"], key, result)
        self.check_exclusion()

    def _told(self, node: Node, session: int, h: int, key: bytes, result: Any) -> None:
        who = (node.me, session, h)
        old = self.handles.get(who)
        if old is None or old.fence != result["fence"]:
            told = self.highest.setdefault(key, {})
            for mode, fence in told.items():
                if not COMPATIBLE[mode][result["mode"]]:
                    assert fence < result["fence"], f"{key!r}: fence {result['fence']:x} after {fence:x}"
            told[result["mode"]] = max(told.get(result["mode"], 0), result["fence"])
        self.handles[who] = Held(key, result["mode"], result["fence"], node.service.lease(session)[0])

    # -- checks ---------------------------------------------------------------------------------------------

    def valid_handles(self) -> list[tuple[tuple[Member, int, int], Held]]:
        """Handles whose holders may rely on them now – also clients of a daemon that was killed."""
        found = []
        for who, held in sorted(self.handles.items()):
            service = self.node_of(who[0]).service
            generation, deadline = service.lease(who[1])
            if generation == held.generation and self.now < deadline:
                found.append((who, held))
        return found

    def node_of(self, member: Member) -> Node:
        return self.past.get(member) or self.nodes[member.node]

    @property
    def past(self) -> dict[Member, Node]:
        return {n.me: n for n in (request[0] for request in self.requests.values())}

    def check_exclusion(self) -> None:
        """No two valid handles are incompatible (design §5.4)."""
        by_name: dict[bytes, list[tuple[Any, Held]]] = {}
        for who, held in self.valid_handles():
            by_name.setdefault(held.key, []).append((who, held))
        for key, holders in by_name.items():
            for i, (who, one) in enumerate(holders):
                for other_who, other in holders[:i]:
                    assert COMPATIBLE[one.mode][other.mode], f"{key!r}: {who} and {other_who} both valid"

    def check(self) -> None:
        """Equal tables at equal positions, and every table sound."""
        seen: dict[tuple[RingId, int], tuple[int, str]] = {}
        for node in self.alive():
            if node.service.complete:
                table = node.table
                table.invariants()
                self.check_whole(node)
                digest = table.digest()
                other = seen.setdefault((table.ring, table.applied), (node.id, digest))
                assert other[1] == digest, f"{other[0]} and {node.id} differ at {table.ring}/{table.applied}"

    def check_whole(self, node: Node) -> None:
        """No table shows a part of a multi-lock held and another one waiting."""
        for (member, session, first), names in self.batches.items():
            if self.incarnations[member.node] != member.incarnation:
                continue
            states: set[str] = set()
            for index, name in enumerate(names):
                found = node.table.names.get(b"\0" + name)
                if found is not None and found.resource is not None:
                    lock = found.resource.locks.get((member.node, session, first + index))
                    states.add("gone" if lock is None else "waits" if lock.batch else "held")
            assert not {"waits", "held"} <= states, f"{names} of {member} is held in part"

    def check_at_rest(self) -> None:
        """After ``run`` in one primary ring of everybody: one table."""
        self.check()
        latest = max(node.ring.id for node in self.alive() if node.ring is not None and node.ring.primary)
        digests = {node.table.digest() for node in self.alive() if node.ring and node.ring.id == latest}
        assert len(digests) == 1, digests

    def kinds(self, node: int) -> list[Kind]:
        """What a node has submitted and not yet sequenced."""
        return [Kind(decode(payload).kind) for payload in self.nodes[node].queue]
