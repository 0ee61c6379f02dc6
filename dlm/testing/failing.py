"""After a failure, in the simulator: agents that switch hosts off, applications that recover, and the rule FAILURE.

FAILURE   No grant is told of a name that is concerned by a failure (``dlm.failures``).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from dlm.handle import Handle
from dlm.lock import Effect, What
from dlm.options import Options
from dlm.withheld import kept
from vsync.service import Spawn
from vsync.testing.violation import Violation

if TYPE_CHECKING:
    from dlm.service import DlmService
    from dlm.testing.workload import LockPlugin
    from vsync.testing.node import SimNode

__all__ = ["Failing", "FailureRules", "drawn", "sections"]

AGENT = "fence_sim"
FIRST_SESSION = 1 << 20  #: sessions of those who look after failures begin here


def drawn(rng: Random, token: int) -> Options:
    """The options of lockspace ``default`` in a run; ``token`` in µs."""
    if rng.random() < 0.5:
        return Options()
    delay = rng.choice([0, 0, max(1, token // 1000)])
    return Options(rng.random() < 0.5, delay, rng.random() < 0.3, rng.random() < 0.3)


def sections(options: Options, nodes: Sequence[str]) -> dict[str, Any]:
    """What stands in the configuration of every node, with an agent for each of these."""
    agents = {name: {"agent": AGENT, "timeout_s": 1, "retries": 1} for name in nodes}
    return {"dlm": {"lockspace": {"default": options.row()}, **({"fencing": agents} if options.fencing else {})}}


class Failing:
    """What the world does about failures in a run: agents, and an application at every node."""

    def __init__(self, plugin: LockPlugin, options: Options, rng: Random) -> None:
        self._plugin = plugin
        self._options = options
        self._rng = rng
        self._token = plugin.cluster.options.timing.token
        self._session = FIRST_SESSION
        self.over = False  #: no more faults
        if options.recovery:
            plugin.cluster.scheduler.after(self._token, self._recover)

    def settle(self) -> None:
        """There are no more faults, and somebody looks after what cannot be fenced."""
        self.over = True
        if self._options.fencing:
            self._plugin.cluster.scheduler.after(self._token, self._acknowledge)

    def program(self, node: SimNode, wanted: Spawn) -> tuple[int, int | None, bytes]:
        """An agent: at times it fails, or hangs; else the host is switched off and on again."""
        options = dict(line.split("=", 1) for line in wanted.stdin.decode().splitlines())
        cluster = self._plugin.cluster
        target = next((each for each in cluster.nodes.values() if f"n{each.id}" == options["nodename"]), None)
        after, luck = self._rng.randint(1, self._token), self._rng.random()
        if target is None:  # a node that was removed: its host is off for good
            return after, 0, b""
        if luck < 0.2 or self.over:
            return after, 1, b"no answer from the power switch"
        if luck < 0.25:
            return 10 * self._token, None, b"it hangs"
        cluster.scheduler.after(max(0, after - 1), self._switch_off, target)
        return after, 0, b""

    def _switch_off(self, node: SimNode) -> None:
        """The host with its daemon and its clients; it starts again. Not after the last fault: it is there, then,
        and leases protect what it had.
        """
        if self.over:
            return
        self._plugin.met["fenced"] += 1
        node.crash()
        self._plugin.switched_off(node)
        self._plugin.cluster.scheduler.after(self._rng.randint(1, self._token), node.start)

    def _acknowledge(self) -> None:
        """An operator says that a removed node is off which was never seen: nobody has an agent for it."""
        cluster = self._plugin.cluster
        for node in sorted(cluster.nodes.values(), key=lambda node: node.id):
            if not node.up:
                continue
            for row in self._plugin.lockers[node.id].home.stonith.rows():
                if row["actor"] is None and row["node"] not in cluster.nodes:
                    self._ask(node, "operator", "fence_ack", {"node": row["node"]})
        cluster.scheduler.after(self._token, self._acknowledge)

    def _recover(self) -> None:
        """One of the applications recovers from what there is to recover from."""
        cluster = self._plugin.cluster
        for node in sorted(cluster.nodes.values(), key=lambda node: node.id):
            locker = self._plugin.lockers.get(node.id)
            if not node.up or locker is None:
                continue
            clearing = locker.home.clearing
            for failure in filter(clearing.ready, clearing.recoveries("default")):
                self._plugin.met["recovered"] += 1
                args = {"space": "default", "node": failure.node, "position": failure.position}
                self._ask(node, "recoverer", "recovered", args)
        cluster.scheduler.after(self._rng.randint(1, self._token), self._recover)

    def _ask(self, node: SimNode, who: str, verb: str, args: dict[str, Any]) -> None:
        self._session += 1
        node.open_session(self._session, who)
        node.request(self._session, 1, "dlm", verb, args)
        node.close_session(self._session)


class FailureRules:
    """FAILURE, at one lock manager."""

    @staticmethod
    def watch(node: int, locker: DlmService) -> None:
        """Put an eye on what is told."""
        teller = locker.home.teller
        tell, together = teller.tell, teller.tell_together

        def check(handle: Handle, effect: Effect | None) -> None:
            if effect is None or effect.what is not What.GRANTED or kept(handle, effect):
                return
            waiting = locker.table.failures.waiting(handle.key)
            if waiting:
                why = ", ".join(f"node {each.node} in {each.space}" for each in waiting)
                raise Violation("FAILURE", f"node {node}: {handle.key!r} is granted before the end of {why}")

        def one(handle: Handle, effect: Effect) -> None:
            check(handle, effect)
            tell(handle, effect)

        def several(handles: Sequence[Handle]) -> None:
            for handle in handles:
                check(handle, handle.outcome)
            together(handles)

        teller.tell = one  # type: ignore[method-assign]
        teller.tell_together = several  # type: ignore[method-assign]


