"""What lock clients do at random: requests with every flag, conversions, releases, sudden ends, orphans.

All choices are drawn from the run's seed. At the end of a run ``drain`` gives everything back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from dlm.modes import EX, MODES, NL, PR, PW, QUECVT_FROM
from dlm.options import PLAIN, Options
from dlm.testing.clients import Client, Handle
from dlm.testing.failing import drawn
from dlm.upkeep import GIVE_BACK_AFTER_US, WORD_AFTER_US, YIELD_AFTER_US

if TYPE_CHECKING:
    from dlm.testing.workload import LockPlugin
    from vsync.testing.node import SimNode

__all__ = ["Habits", "LockOptions"]

KEPT = (PR, PW, EX)  #: see ``dlm.cache.MODES``
ANYWHERE = ("headque", "noorder", "altpr", "altcw", "noqueuebast", "nodlckwt", "nodlckblk", "persistent")


@dataclass(frozen=True, slots=True)
class LockOptions:
    """Drawn from the seed: how the clients behave."""

    clients: int  #: per node
    names: int
    interval: int  #: mean µs between two actions of a client
    own: float  #: share of requests that go to a name which only this node uses
    end: float  #: share of actions that are the client's abrupt end
    late: int  #: µs until a slow client (every second) reads what is in its socket, at most
    modes: tuple[int, ...]
    flags: float = 0.0  #: chance of each of the flags in each operation
    together: float = 0.0  #: share of requests that are for several names at once
    yielding: float = 0.0  #: chance that a client makes room when it is told that others wait
    contended: int = YIELD_AFTER_US  #: µs until a private name with waiters is yielded
    idle: int = GIVE_BACK_AFTER_US  #: µs until a private name without locks is given back
    space: Options = PLAIN  #: of lockspace ``default``
    sudden: float = 0.0  #: chance that a daemon dies right after it has told a client of a grant (D1)
    keeping: float = 0.0  #: share of requests for locks that are kept after their release (``dlm.testing.keeping``)
    word: int = WORD_AFTER_US  #: µs until a kept lock whose client says nothing is in use
    unheard: int = 0  #: mean µs between two nodes whose packets reach nobody (``dlm.testing.unheard``); 0: none

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
            late=rng.choice([0, token // 10, 2 * token]),
            modes=rng.choice([(EX,), (EX, EX, PR), MODES, MODES]),
            flags=rng.choice([0.0, 0.03, 0.15]),
            yielding=rng.choice([0.0, 0.5, 1.0]),
            together=rng.choice([0.0, 0.1, 0.4]),
            contended=rng.choice([YIELD_AFTER_US, token // 5, token // 20]),
            idle=rng.choice([GIVE_BACK_AFTER_US, token, token // 10]),
            space=drawn(rng, token),
            sudden=rng.choice([0.0, 0.0, 0.03]),
            unheard=rng.choice([0, 0, 0, chaos // 4]),
            keeping=rng.choice([0.0, 0.3, 0.9]),
            word=rng.choice([WORD_AFTER_US, token, token // 10]),
        )


class Habits:
    """Acts for the clients of a plug-in, by its options."""

    def __init__(self, plugin: LockPlugin, options: LockOptions, rng: Random) -> None:
        self._plugin = plugin
        self._drawn = options
        self._rng = rng
        self.over = False  #: nothing new is asked for
        self._scheduler = plugin.cluster.scheduler

    def started(self, node: SimNode) -> None:
        """Its clients connect one after the other."""
        for _ in range(self._drawn.clients):
            self._scheduler.after(self._rng.randint(1, 5_000), self._appear, node, node.incarnation)

    def lag(self) -> int:
        """How slow a new client is, see ``LockOptions.late``."""
        return self._drawn.late if self._drawn.late and self._rng.random() < 0.5 else 0

    def comes_in(self, client: Client, what: Callable[[], None]) -> None:
        """Something is in a client's socket, which it reads some time later, one after the other."""
        if not client.lag and not client.inbox:
            what()
            return
        client.inbox.append(what)
        self._scheduler.after(self._rng.randint(0, client.lag), self._read, client)

    @staticmethod
    def _read(client: Client) -> None:
        if client.alive and client.inbox:
            client.inbox.popleft()()

    def told_of_grant(self, node: SimNode) -> None:
        """Some daemons do not live to see another event; at times nobody has received what they sent last."""
        cluster, rng = self._plugin.cluster, self._rng
        if self.over or not self._drawn.sudden or rng.random() >= self._drawn.sudden:
            return
        if rng.random() < 0.6:
            for other in cluster.nodes:
                if other != node.id:
                    cluster.network.cut(node.id, other)
            self._scheduler.after(cluster.options.timing.token, cluster.heal)
        self._scheduler.at(self._scheduler.now, node.crash)
        self._scheduler.after(rng.randint(1, 3 * cluster.options.timing.token), self._plugin.switch_on, node)

    def told_to_make_room(self, handle: Handle) -> None:
        """Advice: some follow it, after a while."""
        if self._rng.random() < self._drawn.yielding:
            self._scheduler.after(self._rng.randint(1, self._drawn.interval), self._make_room, handle)

    def _appear(self, node: SimNode, incarnation: int) -> None:
        if node.up and node.incarnation == incarnation and not self.over:
            self._later(self._plugin.connect(node))

    def _later(self, client: Client) -> None:
        delay = int(self._rng.expovariate(1 / self._drawn.interval)) + 1
        self._scheduler.after(delay, self._act, client)

    def _act(self, client: Client) -> None:
        if self.over or not client.connected:
            return
        rng = self._rng
        if rng.random() < self._drawn.end:
            self._plugin.end(client)
            self._scheduler.after(rng.randint(1, 50_000), self._appear, client.node, client.incarnation)
            return
        self._plugin.keeping.expire(client)
        handles = list(client.handles.values())
        if rng.random() < self._drawn.flags / 4:
            self._plugin.purge(client, rng.choice(sorted(self._plugin.cluster.nodes)))
        elif len(handles) < 3 and (not handles or rng.random() < 0.4):
            if self._drawn.together and rng.random() < self._drawn.together:
                self._lock_all(client)
            else:
                self._lock(client)
        elif len(handles) > 1 and self._drawn.together and rng.random() < self._drawn.together:
            self._plugin.unlock_all(client, rng.sample(handles, rng.randint(2, len(handles))))
        else:
            self._use(rng.choice(handles))
        self._later(client)

    def _lock(self, client: Client) -> None:
        rng, drawn = self._rng, self._drawn
        if client.cache.idle and rng.random() < 0.7:
            _, name, mode, _ = rng.choice(list(client.cache.idle))
            self._plugin.keeping.lock(client, name, mode, rng.random() < 0.2)
            return
        if rng.random() < drawn.own:
            name = f"own{client.node.id}".encode()
        else:
            name = f"r{rng.randrange(drawn.names)}".encode()
        more: dict[str, Any] = {"no_quorum": "fail"} if rng.random() < 0.2 else {}
        mode, noqueue = rng.choice(drawn.modes), rng.random() < 0.2
        if drawn.keeping and mode in KEPT and rng.random() < drawn.keeping:
            self._plugin.keeping.lock(client, name, mode, noqueue)
            return
        self._plugin.keeping.make_room(client, name)
        more |= self._flags(ANYWHERE if mode != NL or noqueue else (*ANYWHERE, "expedite"))
        orphans = [handle for handle in self._plugin.orphans if handle.client.node is client.node]
        if orphans and rng.random() < 0.3:
            orphan = rng.choice(orphans)
            name, mode, more["orphan"] = orphan.name, orphan.mode, True
            more.pop("expedite", None)
        self._plugin.lock(client, name, mode, noqueue, **more)

    def _lock_all(self, client: Client) -> None:
        rng, drawn = self._rng, self._drawn
        known = [f"own{client.node.id}".encode(), *(f"r{i}".encode() for i in range(drawn.names))]
        names = rng.sample(known, min(len(known), rng.choice([1, 2, 2, 3, 5])))
        more: dict[str, Any] = {"no_quorum": "fail"} if rng.random() < 0.2 else {}
        more |= self._flags(("nodlckwt", "nodlckblk"))
        asked = [(name, rng.choice(drawn.modes)) for name in names]
        self._plugin.lock_all(client, asked, rng.random() < 0.2, **more)

    def _flags(self, words: tuple[str, ...]) -> dict[str, Any]:
        """Those of them that the chance gives, and at times a time-out."""
        rng, share = self._rng, self._drawn.flags
        if not share:
            return {}
        found: dict[str, Any] = {word: True for word in words if rng.random() < share}
        if rng.random() < 2 * share:
            found["timeout_us"] = rng.randint(1, 4 * self._drawn.interval)
        return found | {"blocking": rng.random() < 0.7, "valblk": rng.random() < 0.7}

    def _use(self, handle: Handle) -> None:
        """Release it, convert it, withdraw what is in progress, or leave it alone."""
        rng = self._rng
        choice = rng.random()
        if handle.operation is not None:
            if choice < 0.1 and not handle.canceling:
                self._plugin.cancel(handle)
            elif choice < 0.14:
                self._release(handle)
        elif choice < 0.6:
            self._release(handle)
        elif choice < 0.85:
            self._convert(handle)

    def _convert(self, handle: Handle) -> None:
        rng = self._rng
        mode, noqueue = rng.choice([*self._drawn.modes, NL]), rng.random() < 0.3
        words = ANYWHERE if noqueue else (*ANYWHERE, "convdeadlk")
        if handle.granted in MODES and mode in QUECVT_FROM[handle.granted]:
            words = (*words, "quecvt")
        if handle.granted >= PW:
            words = (*words, "ivvalblk")
        self._plugin.convert(handle, mode, noqueue, **self._flags(words))

    def _make_room(self, handle: Handle) -> None:
        client = handle.client
        if self.over or not client.connected or handle.over or handle.operation is not None:
            return
        if handle.granted > PR and self._rng.random() < 0.5:
            self._plugin.convert(handle, NL, False, valblk=True)
        else:
            self._release(handle)

    def _release(self, handle: Handle) -> None:
        """At times with a new value block, if it holds PW or EX. Without, a lock may be kept."""
        writes = handle.granted >= PW and handle.operation is None and self._rng.random() < 0.3
        if writes or self.over or not self._plugin.keeping.release(handle):
            self._plugin.unlock(handle, **({"valblk": True} if writes else {}))

    # -- the end of a run -------------------------------------------------------------------

    def drain(self) -> None:
        """Release what is held; give up conversions and waits that others' conversions may block for ever."""
        plugin, timing = self._plugin, self._plugin.cluster.options.timing
        for client in list(plugin.clients):
            client.lag = 0
            while client.inbox:
                self._read(client)
            if not client.connected:
                continue
            plugin.keeping.give_back(client)
            for handle in list(client.handles.values()):
                operation = handle.operation
                waited = self._scheduler.now - operation.since if operation is not None else 0
                if operation is None or (operation.verb == "convert" and waited > timing.token):
                    self._release(handle)
        for node in plugin.with_orphans():
            there = [client for client in plugin.clients if client.node is node and client.connected]
            client = there[0] if there else plugin.connect(node)
            if not any(operation.verb == "purge" for operation in client.pending.values()):
                plugin.purge(client, node.id)
        self._scheduler.after(timing.join, self.drain)
