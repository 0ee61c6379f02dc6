"""Lock traffic in the simulator: sessions on every node that lock, convert, unlock, cancel, and die.

Joined to ``vsync.testing`` as a plug-in. All choices are drawn from the run's seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from dlm.modes import EX, MODES, NL, NONE, PR, PW
from dlm.plugin import service as make_service
from dlm.service import DlmService
from dlm.testing.clients import Client, Handle, Operation, Page
from dlm.testing.rules import ChainRules, FenceRules, HolderRules, TableRules
from vsync.service import Service
from vsync.testing.cluster import SimCluster
from vsync.testing.node import SimNode
from vsync.testing.plugin import Plugin
from vsync.testing.violation import Violation
from vsync.types import ClusterConfig

__all__ = ["LockOptions", "LockPlugin", "lock_plugins"]

EXPECTED = {  #: error codes that an honest client may see, by verb
    "lock": {"again", "canceled", "no_quorum", "lost", "deadlock"},
    "convert": {"again", "canceled", "no_quorum", "lost", "deadlock", "unknown"},
    "unlock": {"unknown"},
    "cancel": set(),
}
PAGE_STEP = 40  #: the page is written when the deadline grew by 1/40 of a lease (50 ms of 2 s)


@dataclass(frozen=True, slots=True)
class LockOptions:
    """Drawn from the seed: how the clients behave."""

    clients: int  #: per node
    names: int
    interval: int  #: mean µs between two actions of a client
    own: float  #: share of requests that go to a name which only this node uses
    end: float  #: share of actions that are the client's abrupt end
    late: int  #: µs until a client reads a ``lost`` from its socket, at most
    modes: tuple[int, ...]

    @staticmethod
    def draw(seed: int, chaos: int, token: int) -> LockOptions:
        """The options of a seed; ``chaos`` and ``token`` in µs."""
        rng = Random(f"locks/options/{seed}")
        return LockOptions(
            clients=rng.choice([1, 2, 3]),
            names=rng.choice([1, 3, 8, 8]),
            interval=chaos // rng.choice([20, 60, 120]),
            own=rng.choice([0.0, 0.3, 0.8]),
            end=rng.choice([0.0, 0.02, 0.1]),
            late=rng.choice([1, token // 10, 2 * token]),
            modes=rng.choice([(EX,), (EX, EX, PR), MODES, MODES]),
        )


class LockPlugin(Plugin):
    """One per run. ``services[node]`` is the lock manager of the node's present process."""

    trusts_clocks = True  #: leases need them: without, only fences protect

    def __init__(self, seed: int, options: LockOptions | None = None) -> None:
        self.options = options
        self.lockers: dict[int, DlmService] = {}
        self.clients: list[Client] = []
        self.granted = 0
        self.answered = 0
        self._seed = seed
        self._rng = Random(f"locks/{seed}")
        self._holders = HolderRules()
        self._fences = FenceRules()
        self._tables = TableRules()
        self._chain = ChainRules()
        self._pages: dict[int, Page] = {}
        self._by_session: dict[tuple[int, int, int], Client] = {}
        self._sessions = 100
        self._settling = False
        self._inputs = 0
        self._cluster: SimCluster

    # -- the simulator's calls --------------------------------------------------------------

    def begin(self, cluster: SimCluster) -> None:
        """Draw what was not given."""
        self._cluster = cluster
        cluster.checkers.quorum.on_primary.append(self._chain.in_force)
        if self.options is None:
            options = cluster.options
            self.options = LockOptions.draw(self._seed, options.chaos, options.timing.token)

    def services(self, config: ClusterConfig) -> Sequence[Service]:
        """A lock manager for a process that starts."""
        locker = make_service(config)
        assert isinstance(locker, DlmService)
        self.lockers[config.node] = locker
        self._pages[config.node] = Page()
        return (locker,)

    def started(self, node: SimNode) -> None:
        """Its clients connect one after the other."""
        for _ in range(self._drawn.clients):
            self._cluster.scheduler.after(self._rng.randint(1, 5_000), self._appear, node, node.incarnation)

    def stopped(self, node: SimNode) -> None:
        """The daemon is gone; its clients live on, but ask nothing any more."""
        self._tables.forget(node.id)
        for client in self.clients:
            if client.node is node and client.incarnation == node.incarnation:
                client.pending.clear()
                for handle in client.handles.values():
                    handle.operation = None
        # connected clients are those of running daemons
        self.clients = [c for c in self.clients if c.connected]

    def reply(self, node: SimNode, session: int, rid: int, ok: bool, data: Any) -> None:
        """ANSWER: each operation is answered once."""
        client = self._by_session.get((node.id, node.incarnation, session))
        if client is None or not client.alive:
            return
        operation = client.pending.pop(rid, None)
        if operation is None:
            raise Violation("ANSWER", f"node {node.id} session {session}: request {rid} is answered twice")
        self.answered += 1
        operation.ok, operation.data = ok, data
        if ok:
            self._succeeded(client, operation, data)
        else:
            self._failed(client, operation, data)

    def push(self, node: SimNode, session: int, service: str, kind: str, data: Any) -> None:
        """A handle is lost; the client reads it from its socket some time later."""
        client = self._by_session.get((node.id, node.incarnation, session))
        if client is not None and service == "dlm" and kind == "lost":
            handle = client.handles.get(data["h"])
            if handle is None:
                return
            late = self._rng.randint(0, self._drawn.late)
            self._cluster.scheduler.after(late, self._hear_of_loss, client, handle)

    def carried_out(self, node: SimNode) -> None:
        """The shell's part: write the page. And compare tables."""
        locker, page = self.lockers[node.id], self._pages[node.id]
        generation, deadline = locker.lease(0)
        step = self._cluster.options.timing.lease // PAGE_STEP
        if generation != page.generation or deadline < page.deadline or deadline >= page.deadline + step:
            lapsed = generation != page.generation or node.clock() >= page.deadline
            page.generation, page.deadline = generation, deadline
            if lapsed:
                self._check_resumed(node)
        self._tables.check(node.id, locker)
        self._inputs += 1
        if self._inputs % 50 == 0:
            self._tables.invariants(node.id, locker)

    def settle(self, cluster: SimCluster) -> None:
        """Clients end what they hold and ask for nothing new. Scripted tests call it at their end."""
        self._settling = True
        cluster.scheduler.after(1, self._drain)

    def settled(self, cluster: SimCluster) -> str:
        """Empty when all is answered; after ``settle`` also all released and every table at one position."""
        for client in self.clients:
            if client.connected and client.pending:
                operation = next(iter(client.pending.values()))
                return (
                    f"{operation.handle}: {operation.verb} of {operation.handle.name!r} has no answer "
                    f"since {operation.since / 1000:.0f} ms"
                )
            if client.connected and client.handles and self._settling:
                handle = next(iter(client.handles.values()))
                return f"{handle} of {handle.name!r} is not released"
        for node, locker in self._running():
            if not locker.complete:
                return f"node {node} has no complete table"
        if self._settling and len({(x.table.ring, x.table.applied) for _, x in self._running()}) > 1:
            return "the tables stand at different positions"
        return ""

    def finish(self, cluster: SimCluster) -> None:
        """TABLE: all full, all equal, and no lock left anywhere, private ones included (ghosts: A1, A4)."""
        for node, locker in self._running():
            self._tables.check(node, locker)
            self._tables.invariants(node, locker)
            for key, name in locker.table.names.items():
                locks = name.resource.locks if name.resource is not None else ()
                if locks:
                    raise Violation("TABLE", f"node {node}: {key!r} has a ghost lock {next(iter(locks))}")

    def _running(self) -> list[tuple[int, DlmService]]:
        return [(node, self.lockers[node]) for node in sorted(self.lockers) if self._cluster[node].up]

    @property
    def _drawn(self) -> LockOptions:
        assert self.options is not None
        return self.options

    # -- what a client can do (for scripted tests too) --------------------------------------

    def connect(self, node: SimNode) -> Client:
        """A new client process with a session of this node's present daemon."""
        self._sessions += 1
        client = Client(node, self._sessions, self._pages[node.id], node.incarnation)
        self.clients.append(client)
        self._by_session[(node.id, node.incarnation, client.session)] = client
        node.open_session(client.session, f"client{client.session}")
        return client

    def lock(self, client: Client, name: bytes, mode: int = EX, noqueue: bool = False, **more: Any) -> Operation:
        """Ask for a new lock; the handle is the operation's."""
        handle = client.new_handle(name)
        return self._ask("lock", handle, mode, noqueue, {"name": name, **more})

    def convert(self, handle: Handle, mode: int, noqueue: bool = False) -> Operation:
        """Ask for another mode; what may be lost by it is given up now (K11)."""
        handle.asks_for(mode)
        return self._ask("convert", handle, mode, noqueue, {})

    def unlock(self, handle: Handle, **more: Any) -> Operation:
        """End the handle – now, not when it is answered (D8)."""
        handle.client.drop(handle)
        return self._ask("unlock", handle, NONE, False, more)

    def cancel(self, handle: Handle) -> Operation:
        """Withdraw the operation in progress."""
        handle.canceling = True
        return self._ask("cancel", handle, NONE, False, {})

    def end(self, client: Client) -> None:
        """The client process ends: its handles first, then its socket (P1)."""
        client.alive = False
        for handle in client.handles.values():
            handle.over = True
        client.pending.clear()
        self.clients.remove(client)
        client.node.close_session(client.session)

    def _ask(self, verb: str, handle: Handle, mode: int, noqueue: bool, more: dict[str, Any]) -> Operation:
        client = handle.client
        operation = client.begin(verb, handle, mode, self._cluster.scheduler.now, noqueue)
        args = {"h": handle.h, **more}
        if mode != NONE:
            args.update(mode=mode, noqueue=noqueue)
        client.node.request(client.session, operation.rid, "dlm", verb, args)
        return operation

    # -- what they do at random -------------------------------------------------------------

    def _appear(self, node: SimNode, incarnation: int) -> None:
        if node.up and node.incarnation == incarnation and not self._settling:
            self._later(self.connect(node))

    def _later(self, client: Client) -> None:
        delay = int(self._rng.expovariate(1 / self._drawn.interval)) + 1
        self._cluster.scheduler.after(delay, self._act, client)

    def _act(self, client: Client) -> None:
        if self._settling or not client.connected:
            return
        rng = self._rng
        if rng.random() < self._drawn.end:
            self.end(client)
            self._cluster.scheduler.after(rng.randint(1, 50_000), self._appear, client.node, client.incarnation)
            return
        handles = list(client.handles.values())
        if len(handles) < 3 and (not handles or rng.random() < 0.4):
            self._lock(client)
        else:
            self._use(rng.choice(handles))
        self._later(client)

    def _lock(self, client: Client) -> None:
        rng, drawn = self._rng, self._drawn
        if rng.random() < drawn.own:
            name = f"own{client.node.id}".encode()
        else:
            name = f"r{rng.randrange(drawn.names)}".encode()
        more = {"no_quorum": "fail"} if rng.random() < 0.2 else {}
        self.lock(client, name, rng.choice(drawn.modes), rng.random() < 0.2, **more)

    def _use(self, handle: Handle) -> None:
        """Release it, convert it, withdraw what is in progress, or leave it alone."""
        rng = self._rng
        choice = rng.random()
        if handle.operation is not None:
            if choice < 0.1 and not handle.canceling:
                self.cancel(handle)
            elif choice < 0.14:
                self._release(handle)
        elif choice < 0.6:
            self._release(handle)
        elif choice < 0.85:
            self.convert(handle, rng.choice([*self._drawn.modes, NL]), rng.random() < 0.3)

    def _release(self, handle: Handle) -> None:
        """At times with a new value block, if it holds PW or EX."""
        if handle.granted >= PW and handle.operation is None and self._rng.random() < 0.3:
            self.unlock(handle, valblk=True, value=handle.fence.to_bytes(8, "big"))
        else:
            self.unlock(handle)

    # -- what they hear ---------------------------------------------------------------------

    def _succeeded(self, client: Client, operation: Operation, data: dict[str, Any]) -> None:
        handle = operation.handle
        if operation.verb == "cancel":
            handle.canceling = False
        if operation.verb not in ("lock", "convert"):
            return
        handle.operation = None
        if handle.over:
            return  # released while the answer was under way
        if data["mode"] != operation.mode:
            raise Violation("ANSWER", f"{handle} asked for mode {operation.mode} and got {data['mode']}")
        new_fence = data["fence"] != handle.fence
        handle.mode = handle.granted = operation.mode
        handle.fence, handle.generation = data["fence"], data["generation"]
        self.granted += 1
        self._holders.granted(handle)
        if new_fence:
            self._fences.granted(handle)

    def _failed(self, client: Client, operation: Operation, data: dict[str, Any]) -> None:
        handle, verb, code = operation.handle, operation.verb, data["code"]
        if code not in EXPECTED[verb]:
            raise Violation("ANSWER", f"{handle}: {verb} failed with {code!r} ({data['message']})")
        if code == "again" and not operation.noqueue:
            raise Violation("ANSWER", f"{handle}: {verb} failed with 'again' although it may wait")
        if verb in ("lock", "convert"):
            handle.operation = None
        if verb == "lock":
            client.drop(handle)
        elif verb == "convert" and not handle.over:
            if code in ("lost", "unknown"):
                client.drop(handle)
            else:
                handle.mode = handle.granted

    def _hear_of_loss(self, client: Client, handle: Handle) -> None:
        if not handle.over:
            client.drop(handle)

    def _check_resumed(self, node: SimNode) -> None:
        """The lease goes on: handles that had lapsed are valid again, and must not meet others."""
        for client in self.clients:
            if client.node is node:
                for handle in client.handles.values():
                    self._holders.check(handle)

    # -- the end of a run -------------------------------------------------------------------

    def _drain(self) -> None:
        """Release what is held; give up conversions and waits that others' conversions may block for ever."""
        now, timing = self._cluster.scheduler.now, self._cluster.options.timing
        for client in self.clients:
            if not client.connected:
                continue
            for handle in list(client.handles.values()):
                operation = handle.operation
                if operation is None or (operation.verb == "convert" and now - operation.since > timing.token):
                    self._release(handle)
        self._cluster.scheduler.after(timing.join, self._drain)


def lock_plugins(seed: int) -> tuple[LockPlugin]:
    """The lock manager and its clients, for a run of this seed."""
    return (LockPlugin(seed),)
