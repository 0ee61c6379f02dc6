"""Lock traffic in the simulator: sessions on every node that lock, convert, unlock, cancel, and die.

What they do is in ``habits``; here is how it reaches the lock managers, and what they are told. Joined to
``vsync.testing`` as a plug-in. All choices are drawn from the run's seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

from dlm.folded import contents
from dlm.modes import COMPATIBLE, EX, NAMES, NONE
from dlm.options import PLAIN
from dlm.plugin import service as make_service
from dlm.service import DlmService
from dlm.stonith import STARTUP_US
from dlm.testing.answered import OUTCOMES, check_failure, check_outcome
from dlm.testing.clients import Client, Handle, Operation, Page
from dlm.testing.failing import Failing, FailureRules, sections
from dlm.testing.habits import Habits, LockOptions
from dlm.testing.keeping import Keeping
from dlm.testing.losses import FreezeRules, LossRules
from dlm.testing.rules import (
    ChainRules,
    FenceRules,
    HolderRules,
    QueueRules,
    TableRules,
    ValueRules,
    WholeRules,
)
from dlm.testing.unheard import Unheard
from vsync.service import Service, Spawn
from vsync.testing.cluster import SimCluster
from vsync.testing.node import SimNode
from vsync.testing.plugin import Plugin
from vsync.testing.violation import Violation
from vsync.types import ClusterConfig

__all__ = ["LockOptions", "LockPlugin", "lock_plugins"]

PAGE_STEP = 40  #: the page is written when the deadline grew by 1/40 of a lease (50 ms of 2 s)


class LockPlugin(Plugin):
    """One per run. ``services[node]`` is the lock manager of the node's present process."""

    def __init__(self, seed: int, options: LockOptions | None = None) -> None:
        self.options = options
        self.lockers: dict[int, DlmService] = {}
        self.hosts: dict[str, SimNode] = {}  #: all that have ever run, by name
        self.clients: list[Client] = []
        self.orphans: list[Handle] = []  #: of processes that have ended; their nodes still hold them (P1)
        self._purged: set[int] = set()  #: nodes whose orphans may be dropped at any time
        self.granted = 0
        self.answered = 0
        self.met: Counter[str] = Counter()  #: what is rare, by name: is it met at all?
        self._seed = seed
        self._rng = Random(f"locks/{seed}")
        self._holders = HolderRules()
        self._fences = FenceRules()
        self._tables = TableRules()
        self._chain = ChainRules()
        self._values = ValueRules()
        self._queues = QueueRules()
        self.freezes = FreezeRules()
        self.keeping = Keeping(self)
        self._pages: dict[int, Page] = {}
        self._old_pages: list[tuple[int, Page]] = []  #: of processes that have ended, by node
        self._whole: dict[tuple[int, int], Operation] = {}  #: multi-locks without an answer, by session and rid
        self._by_session: dict[tuple[int, int, int], Client] = {}
        self._sessions = 100
        self._inputs = 0
        self.cluster: SimCluster

    # -- the simulator's calls --------------------------------------------------------------

    def begin(self, cluster: SimCluster) -> None:
        """Draw what was not given."""
        self.cluster = cluster
        cluster.checkers.quorum.on_primary.append(self._chain.in_force)
        if self.options is None:
            options = cluster.options
            self.options = LockOptions.draw(self._seed, options.chaos, options.timing.token)
        self._habits = Habits(self, self.options, self._rng)
        self._unheard = Unheard(self, self.options.unheard, self._rng)
        self._failing = Failing(self, self.options.space, Random(f"locks/failing/{self._seed}"))

    def services(self, config: ClusterConfig) -> Sequence[Service]:
        """A lock manager for a process that starts."""
        assert self.options is not None
        if self.options.space != PLAIN:
            names = [peer.name for peer in config.peers]
            config = replace(config, sections=sections(self.options.space, names))
        locker = make_service(config)
        assert isinstance(locker, DlmService)
        self.lockers[config.node] = locker
        self._queues.watch(config.node, locker)
        self.freezes.watch(config.node, locker)
        self._pages[config.node] = Page()
        return (locker,)

    def started(self, node: SimNode) -> None:
        """Its clients come."""
        assert self.options is not None
        self.hosts[f"n{node.id}"] = node
        upkeep = self.lockers[node.id].upkeep
        upkeep.yield_after, upkeep.give_back_after = self.options.contended, self.options.idle
        upkeep.word_after = self.options.word
        FailureRules.watch(node.id, self.lockers[node.id])
        self._habits.started(node)

    def may_stand_still(self, node: SimNode) -> bool:
        """Only where nobody counts on a lease of this host, and none is being made (D6): outside of that fences
        protect, or nobody.
        """
        running = self.lockers[node.id].lease_clock.running
        if node.state != "gather" and (node.state != "operational" or running):
            return False
        pages = [self._pages[node.id], *(page for host, page in self._old_pages if host == node.id)]
        return all(page.deadline <= node.clock() for page in pages)

    def stopped(self, node: SimNode) -> None:
        """The daemon is gone; its clients live on and read what it has told them, but ask nothing any more."""
        self._tables.forget(node.id)
        self._old_pages.append((node.id, self._pages[node.id]))
        for client in self.clients:
            if client.node is node and client.incarnation == node.incarnation:
                client.pending.clear()
                for handle in client.handles.values():
                    handle.operation = None
                self._forget_whole(client)
        # connected clients are those of running daemons
        self.clients = [c for c in self.clients if c.connected]

    def program(self, node: SimNode, wanted: Spawn) -> tuple[int, int | None, bytes] | None:
        """A fence agent."""
        return self._failing.program(node, wanted)

    def switch_on(self, node: SimNode) -> None:
        """The host runs again, unless it was dismissed."""
        if self.cluster.nodes.get(node.id) is node:
            node.start()

    def switched_off(self, node: SimNode) -> None:
        """The whole host: its daemon, and the clients with all that they believe."""
        for client in [client for client in self.clients if client.node is node]:
            client.alive = False
        self.clients = [client for client in self.clients if client.alive]
        self._forget_orphans(lambda orphan: orphan.client.node is node)
        self._holders.switched_off(node)

    def reply(self, node: SimNode, session: int, rid: int, ok: bool, data: Any) -> None:
        """ANSWER: each operation is answered once."""
        client = self._by_session.get((node.id, node.incarnation, session))
        if client is None or not client.alive:
            return
        operation = client.pending.pop(rid, None)
        if operation is None:
            raise Violation("ANSWER", f"node {node.id} session {session}: request {rid} is answered twice")
        self._whole.pop((session, rid), None)
        self.answered += 1
        self._habits.comes_in(client, partial(self._hears, client, operation, ok, data))
        if ok and operation.verb in ("lock", "convert", "lock_all"):
            self._habits.told_of_grant(node)

    def _hears(self, client: Client, operation: Operation, ok: bool, data: Any) -> None:
        operation.ok, operation.data = ok, data
        if ok:
            self._succeeded(client, operation, data)
        else:
            self._failed(client, operation, data)

    def push(self, node: SimNode, session: int, service: str, kind: str, data: Any) -> None:
        """A handle is lost, or in somebody's way."""
        client = self._by_session.get((node.id, node.incarnation, session))
        if client is not None and client.alive and service == "dlm" and kind in ("lost", "blocking"):
            self._habits.comes_in(client, partial(self._is_told, client, kind, data))

    def _is_told(self, client: Client, kind: str, data: Any) -> None:
        handle = client.handles.get(data["h"])
        if kind == "blocking":
            self.keeping.called(client, data["h"])
        else:
            client.cache.lost(data["h"])
        if handle is None:
            return
        if kind == "blocking":
            self._advised(handle, data["mode"])
        else:
            self.met["lost"] += 1
            client.drop(handle)

    def carried_out(self, node: SimNode) -> None:
        """The shell's part: write the page. And compare tables."""
        locker, page = self.lockers[node.id], self._pages[node.id]
        generation, deadline = locker.lease(0)
        step = self.cluster.options.timing.lease // PAGE_STEP
        if generation != page.generation or deadline < page.deadline or deadline >= page.deadline + step:
            ended = generation != page.generation
            lapsed = ended or node.clock() >= page.deadline
            page.generation, page.deadline = generation, deadline
            if ended:
                LossRules.check(node.id, locker, self.clients)
            if lapsed:
                self._check_resumed(node)
        self._tables.check(node.id, locker)
        if locker.complete and self._whole:
            WholeRules.check(node.id, locker, self._whole.values())
        self._inputs += 1
        if self._inputs % 50 == 0:
            self._tables.invariants(node.id, locker)
            LossRules.check(node.id, locker, self.clients)

    def settle(self, cluster: SimCluster) -> None:
        """Clients end what they hold and ask for nothing new. Scripted tests call it at their end."""
        self._habits.over = self._unheard.over = True
        self._failing.settle()
        cluster.scheduler.after(1, self._habits.drain)

    def patience(self, cluster: SimCluster) -> int:
        """A node that never came is given time to start before it is fenced; one that was removed never does."""
        assert self.options is not None
        return 2 * STARTUP_US if cluster.options.nodes_interval and self.options.space.fencing else 0

    def settled(self, cluster: SimCluster) -> str:
        """Empty when all is answered; after ``settle`` also all released and every table at one position."""
        for client in self.clients:
            if client.connected and client.pending:
                operation = next(iter(client.pending.values()))
                return (
                    f"{operation.handle}: {operation.verb} of {operation.handle.name!r} has no answer "
                    f"since {operation.since / 1000:.0f} ms"
                )
            if client.connected and client.inbox:
                return f"a client of node {client.node.id} has not read what it was told"
            if client.connected and client.handles and self._habits.over:
                handle = next(iter(client.handles.values()))
                return f"{handle} of {handle.name!r} is not released"
            if client.connected and client.cache.entries and self._habits.over:
                return f"a client of node {client.node.id} keeps a lock"
        for node, locker in self._running():
            if not locker.complete:
                return f"node {node} has no complete table"
            if self._habits.over and len(locker.home.outbox):
                return f"node {node} has messages under way"
        if self._habits.over and (left := self.with_orphans()):
            return f"node {left[0].id} has orphans"
        waiting = [node for node, locker in self._running() if locker.table.failures]
        if self._habits.over and waiting:
            return f"node {waiting[0]} still waits after a failure"
        if self._habits.over and len({(x.table.ring, x.table.applied) for _, x in self._running()}) > 1:
            return "the tables stand at different positions"
        return ""

    def finish(self, cluster: SimCluster) -> None:
        """TABLE: all full, all equal, and no lock left anywhere, private ones included (ghosts: A1, A4)."""
        for node, locker in self._running():
            self._tables.check(node, locker)
            self._tables.invariants(node, locker)
            for key, name in locker.table.names.items():
                known = contents(key, name)
                locks = known.locks if known is not None else ()
                if locks:
                    raise Violation("TABLE", f"node {node}: {key!r} has a ghost lock {next(iter(locks))}")

    def _running(self) -> list[tuple[int, DlmService]]:
        hosts = self.cluster.nodes
        return [(node, self.lockers[node]) for node in sorted(self.lockers) if node in hosts and hosts[node].up]

    def with_orphans(self) -> list[SimNode]:
        """Running nodes that hold locks of processes that have gone."""
        return [self.cluster[node] for node, locker in self._running() if locker.home.orphans]

    # -- what a client can do (for scripted tests too) --------------------------------------

    def connect(self, node: SimNode) -> Client:
        """A new client process with a session of this node's present daemon."""
        self._sessions += 1
        client = Client(node, self._sessions, self._pages[node.id], node.incarnation, self._habits.lag())
        self.clients.append(client)
        self._by_session[(node.id, node.incarnation, client.session)] = client
        node.open_session(client.session, f"client{client.session}")
        return client

    def lock(self, client: Client, name: bytes, mode: int = EX, noqueue: bool = False, **more: Any) -> Operation:
        """Ask for a new lock; the handle is the operation's."""
        handle = client.new_handle(name)
        if more.get("orphan"):
            self._forget_orphans(lambda orphan: orphan.client.node is client.node and orphan.name == name)
        return self.ask("lock", handle, mode, noqueue, {"name": name, **more})

    def lock_all(
        self, client: Client, asked: Sequence[tuple[bytes, int]], noqueue: bool = False, **more: Any
    ) -> Operation:
        """Ask for several locks at once; the operation's handle is the first one's, ``together`` are all."""
        asked = sorted(asked)
        handles = tuple(client.new_handle(name) for name, _ in asked)
        for handle, (name, mode) in zip(handles, asked, strict=True):
            handle.asked = mode
            self.keeping.make_room(client, name)
        return self.ask("lock_all", handles[0], NONE, noqueue, {"locks": asked, **more}, handles)

    def unlock_all(self, client: Client, handles: Sequence[Handle]) -> Operation:
        """End several handles at once."""
        for handle in handles:
            self.keeping.drop(handle)
            client.drop(handle)
        locks = [{"h": handle.h} for handle in handles]
        return self.ask("unlock_all", Handle(client, 0, b""), NONE, False, {"locks": locks})

    def convert(self, handle: Handle, mode: int, noqueue: bool = False, **more: Any) -> Operation:
        """Ask for another mode; what may be lost by it is given up now (K11)."""
        if more.get("valblk"):
            more["value"] = _stamp(handle)
            self._values.asks(handle)
        self.keeping.drop(handle)
        handle.asks_for(mode, _flags(more))
        return self.ask("convert", handle, mode, noqueue, more)

    def unlock(self, handle: Handle, **more: Any) -> Operation:
        """End the handle – now, not when it is answered (D8)."""
        self.keeping.drop(handle)
        handle.client.drop(handle)
        if more.get("valblk") and "value" not in more:
            more["value"] = _stamp(handle)
            self._values.asks(handle)
        return self.ask("unlock", handle, NONE, False, more)

    def cancel(self, handle: Handle) -> Operation:
        """Withdraw the operation in progress."""
        together: tuple[Handle, ...] = ()
        if handle.operation is not None:
            together, handle.operation.given_up = handle.operation.together, True
        for each in together or (handle,):
            each.canceling = True
        return self.ask("cancel", handle, NONE, False, {}, together)

    def purge(self, client: Client, node: int) -> Operation:
        """Ask for the end of a node's orphans (P4). Nobody counts on them from now on."""
        if client.node.id != node:
            self._purged.add(node)  # at some time from now on, which this client does not hear of
        self._forget_orphans(lambda orphan: orphan.client.node.id == node)
        return self.ask("purge", Handle(client, 0, b""), NONE, False, {"node": node})

    def end(self, client: Client) -> None:
        """The client process ends: its handles first, then its socket (P1). What is PERSISTENT stays in force."""
        client.alive = False
        for handle in client.handles.values():
            if handle.persistent and handle.held and client.node.id not in self._purged:
                self.orphans.append(handle)
            else:
                handle.over = True
        client.pending.clear()
        self._forget_whole(client)
        self.clients.remove(client)
        client.node.close_session(client.session)

    def _forget_whole(self, client: Client) -> None:
        for who in [who for who in self._whole if who[0] == client.session]:
            del self._whole[who]

    def _forget_orphans(self, which: Callable[[Handle], bool]) -> None:
        for orphan in self.orphans:
            orphan.over = orphan.over or which(orphan)
        self.orphans = [orphan for orphan in self.orphans if not orphan.over]

    def ask(
        self,
        verb: str,
        handle: Handle,
        mode: int,
        noqueue: bool,
        more: dict[str, Any],
        together: tuple[Handle, ...] = (),
    ) -> Operation:
        """Send a request."""
        client = handle.client
        operation = client.begin(verb, handle, mode, self.cluster.scheduler.now, noqueue, _flags(more), together)
        args = {"h": handle.h, **more} if handle.h else more
        if verb == "lock_all":
            self._whole[client.session, operation.rid] = operation
            args["noqueue"] = noqueue
        elif mode != NONE:
            args.update(mode=mode, noqueue=noqueue)
        client.node.request(client.session, operation.rid, "dlm", verb, args)
        return operation

    # -- what they hear ---------------------------------------------------------------------

    def _succeeded(self, client: Client, operation: Operation, data: dict[str, Any]) -> None:
        handle = operation.handle
        if operation.verb == "cancel":
            for each in operation.together or (handle,):
                each.canceling = False
        if operation.verb == "lock_all":
            if [row["h"] for row in data["locks"]] != [each.h for each in operation.together]:
                raise Violation("MULTI", f"{handle}: not all of the locks were granted: {data['locks']}")
            self.met["together"] += 1
            for each, row in zip(operation.together, data["locks"], strict=True):
                self._succeeded(client, replace(operation, verb="lock", handle=each, mode=each.asked), row)
        if operation.verb == "unlock" and "valblk" in operation.flags:
            self._values.writes(handle)  # from now on, and not before, it is there whatever happens (C14)
        if operation.verb not in ("lock", "convert"):
            return
        handle.operation = None
        if operation.verb == "convert" and "valblk" in operation.flags and data["mode"] <= handle.granted:
            self._values.writes(handle)
        handle.persistent = handle.persistent or not operation.flags.isdisjoint({"persistent", "orphan"})
        if handle.over:
            return  # released while the answer was under way
        check_outcome(operation, data)
        new_fence = data["fence"] > handle.fence  # a later number of a block stays, as in ``Held``
        handle.mode = handle.granted = data["mode"]
        handle.fence, handle.generation = max(data["fence"], handle.fence), data["generation"]
        if operation.verb == "lock":
            self.keeping.succeeded(operation, data)
        elif new_fence:
            handle.first = handle.fence
        self.granted += 1
        self.met.update(word for word, bit in OUTCOMES.items() if data["flags"] & bit)
        self.met.update(operation.flags & {"orphan", "expedite", "quecvt"})
        self.believes(handle, new_fence)
        if new_fence and data["value_read"] and data["value_valid"]:
            self._values.reads(handle, data["value"])

    def believes(self, handle: Handle, new_fence: bool) -> None:
        """A client holds it from now on, or holds another mode. Raises ``Violation``."""
        self._holders.granted(handle)
        if new_fence:
            self._fences.granted(handle)

    def _failed(self, client: Client, operation: Operation, data: dict[str, Any]) -> None:
        handle, verb, code = operation.handle, operation.verb, data["code"]
        self.met[code] += 1
        check_failure(operation, data)
        for each in operation.together if verb == "lock_all" else ():
            each.operation = None
            client.drop(each)
        if verb in ("lock", "convert"):
            handle.operation = None
        if verb == "lock":
            self.keeping.drop(handle)
            client.drop(handle)
        elif verb == "convert" and not handle.over:
            if code == "no_quorum":
                handle.listens = operation.listened  # its node has refused it, and nobody has heard of it
            if code in ("lost", "unknown"):
                client.drop(handle)
            else:
                handle.granted = data.get("mode", handle.granted)  # a conversion may have given it up (CONVDEADLK)
                handle.mode = handle.granted

    def _advised(self, handle: Handle, mode: int) -> None:
        """BLOCKING: who is told asked for it, holds something, and it is in the way (B6, B10); unless it has asked
        for something else since, whose answer it has not read, or died with its daemon.
        """
        if handle.operation is None and not handle.over and handle.client.connected:
            if not handle.listens:
                raise Violation("BLOCKING", f"{handle} is told that it blocks {NAMES[mode]} and never asked to be")
            if handle.granted == NONE or COMPATIBLE[handle.granted][mode]:
                raise Violation("BLOCKING", f"{handle} holds {handle.granted}, which does not block {NAMES[mode]}")
        self.met["advice"] += 1
        self._habits.told_to_make_room(handle)

    def _check_resumed(self, node: SimNode) -> None:
        """The lease goes on: handles that had lapsed are valid again, and must not meet others."""
        for client in self.clients:
            if client.node is node:
                for handle in client.handles.values():
                    self._holders.check(handle)


def _flags(more: dict[str, Any]) -> frozenset[str]:
    """What was asked for besides, by name."""
    return frozenset(word for word, given in more.items() if given)


def _stamp(handle: Handle) -> bytes:
    """What its holder writes: who was it?"""
    return handle.fence.to_bytes(8, "big")


def lock_plugins(seed: int) -> tuple[LockPlugin]:
    """The lock manager and its clients, for a run of this seed."""
    return (LockPlugin(seed),)
