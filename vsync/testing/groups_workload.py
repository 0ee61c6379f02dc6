"""Programs that join, send to and leave process groups, on every node; their streams are judged (CPG-G1..G4)."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from vsync.testing.groups_rules import GroupRules
from vsync.testing.plugin import Plugin
from vsync.testing.trace import Place
from vsync.testing.workload import NOTE
from vsync.types import Member, View

if TYPE_CHECKING:
    from vsync.testing.cluster import SimCluster
    from vsync.testing.node import SimNode

__all__ = ["GroupPlugin"]

FIRST_SESSION = 1_000  #: smaller numbers are of the recorder and of other plug-ins
NAMES = ("red", "green", "blue")


class GroupPlugin(Plugin):
    """Sessions come and go every ``interval`` µs on average; what they ask for is drawn from the seed."""

    def __init__(self, seed: int, interval: int) -> None:
        self.rules = GroupRules()
        self._rng = Random(f"groups/{seed}")
        self._interval = interval
        self._active = True
        self._next = FIRST_SESSION
        self._rid = 0
        self._sessions: dict[int, dict[int, set[str]]] = {}  # by node: session -> groups it is in, as answered
        self._asked: dict[tuple[int, int], tuple[int, str, str]] = {}  # (node, rid): session, verb, group

    def begin(self, cluster: SimCluster) -> None:
        self.cluster = cluster
        cluster.trace.subscribe(Place, self._placed)
        self._later()

    def _placed(self, event: Place) -> None:
        if event.view is not None:
            self.rules.viewed(event.who, event.view)
        else:
            self.rules.placed(event.who, event.position)

    def started(self, node: SimNode) -> None:
        self._sessions[node.id] = {}
        self.rules.started(node.me)
        _tap(node)

    def stopped(self, node: SimNode) -> None:
        self.rules.stopped(node.me)
        for session in self._sessions.pop(node.id, {}):
            self.rules.closed(node.me, session)
        self._asked = {key: asked for key, asked in self._asked.items() if key[0] != node.id}

    def settle(self, cluster: SimCluster) -> None:
        self._active = False

    # -- what the programs do ---------------------------------------------------------------

    def _later(self) -> None:
        self.cluster.scheduler.after(int(self._rng.expovariate(1 / self._interval)) + 1, self._act)

    def _act(self) -> None:
        if not self._active:
            return
        self._later()
        rng = self._rng
        node = self.cluster.nodes[rng.choice(sorted(self.cluster.nodes))]
        sessions = self._sessions.get(node.id)
        if sessions is None or node.leaving:
            return
        if not sessions or (len(sessions) < 3 and rng.random() < 0.1):
            self._open(node, sessions)
        session = rng.choice(sorted(sessions))
        if rng.random() < 0.04:
            self._close(node, session)
            return
        group = rng.choice(NAMES)
        if group not in sessions[session]:
            self._ask(node, session, "join", group)
        elif rng.random() < 0.15:
            self.rules.asked_to_leave.add((node.id, session, group))
            self._ask(node, session, "leave", group)
        else:
            self._ask(node, session, "send", group, data=b"%d" % rng.getrandbits(32), wait=True)

    def _open(self, node: SimNode, sessions: dict[int, set[str]]) -> None:
        self._next += 1
        sessions[self._next] = set()
        node.open_session(self._next, f"program {self._next}")

    def _close(self, node: SimNode, session: int) -> None:
        self._sessions[node.id].pop(session)
        self._asked = {key: a for key, a in self._asked.items() if (key[0], a[0]) != (node.id, session)}
        self.rules.closed(node.me, session)
        node.close_session(session)

    def _ask(self, node: SimNode, session: int, verb: str, group: str, **more: Any) -> None:
        self._rid += 1
        self._asked[node.id, self._rid] = (session, verb, group)
        node.request(session, self._rid, "group", verb, {"group": group, **more})

    # -- what they are told -----------------------------------------------------------------

    def reply(self, node: SimNode, session: int, rid: int, ok: bool, data: Any) -> None:
        asked = self._asked.pop((node.id, rid), None) if session > FIRST_SESSION else None
        if asked is None or not ok:
            return
        _, verb, group = asked
        groups = self._sessions[node.id].get(session, set())
        if verb == "join":
            groups.add(group)
        elif verb == "leave":
            groups.discard(group)

    def push(self, node: SimNode, session: int, service: str, kind: str, data: Any) -> None:
        if service == "group" and session in self._sessions[node.id]:  # else nobody is there to read it
            judge = self.rules.on_view if kind == "view" else self.rules.on_message
            judge(node.me, session, data)

    # -- the end ----------------------------------------------------------------------------

    def settled(self, cluster: SimCluster) -> str:
        for (node, _), (session, verb, group) in self._asked.items():
            return f"session {session} of node {node} waits for its {verb} in group {group!r}"
        waiting = [n.id for n in cluster.nodes.values() if n.up and n.core.groups._downs]  # type: ignore[attr-defined]
        return f"node {waiting[0]} has not said which of its sessions ended" if waiting else ""

    def finish(self, cluster: SimCluster) -> None:
        self.rules.finish()
        lists = {
            node.id: {
                name: [(row["node"], row["session"]) for row in rows]
                for name, rows in node.core.status()["services"]["group"].items()
            }
            for node in cluster.nodes.values()
        }
        expected: dict[str, set[tuple[int, int]]] = {}
        for node, sessions in self._sessions.items():
            for session, groups in sessions.items():
                for group in groups:
                    expected.setdefault(group, set()).add((node, session))
        self.rules.check_lists(lists, expected)


def _tap(node: SimNode) -> None:
    """Have the node report its place in the agreed order before its group service handles a message or a view."""
    core: Any = node.core
    inner: Callable[..., None] = core.groups.deliver
    inner_view: Callable[[View, int], None] = core.groups.view
    me: Member = node.me

    def deliver(origin: Member, position: int, payload: bytes, installing: bool, now: int) -> None:
        core.event(NOTE, event=Place(me, position))
        inner(origin, position, payload, installing, now)

    def view(new: View, now: int) -> None:
        core.event(NOTE, event=Place(me, -1, new))
        inner_view(new, now)

    core.groups.deliver, core.groups.view = deliver, view
