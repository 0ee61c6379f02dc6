"""CPG-G1..G4: what must hold of the streams that members of process groups are given.

Judged from the outside: the pushes that sessions get, and the place in the agreed order at which their node was
when it pushed them. A place is comparable within a *phase*: the regular part of a ring, and the part behind the
transitional view, told apart by the ring that it leads to. When rings merge, nodes begin with different lists,
until the lists of all have been delivered; so a change has to be the same for those that knew the same members
before, a message reaches a session if that session knows its sender, and in the end all lists must be equal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vsync.testing.violation import Violation
from vsync.types import NO_RING, Member, View

__all__ = ["GroupRules"]

_Who = tuple[int, int]  # node and session
_Phase = tuple[Any, ...]
_Entry = tuple[int, int, str]  # node, session, reason


@dataclass(slots=True)
class _Stay:
    """A session's part in a group during one phase."""

    entry: int  #: the place after which it has to see everything
    known: list[tuple[int, frozenset[_Who]]]  #: from which place on it knew whom
    exit: int | None = None  #: the place up to which
    seen: list[int] = field(default_factory=list)  #: places of messages


@dataclass(slots=True)
class _Node:
    """Where one process is in the agreed order."""

    me: Member
    phase: _Phase = ()
    place: int = -1
    groups: dict[tuple[int, str], list[_Who]] = field(default_factory=dict)  #: by (session, group): its last view
    stays: dict[tuple[int, str], _Stay] = field(default_factory=dict)


class GroupRules:
    """Feed it places, views and pushes; it raises ``Violation`` at once, or in ``finish`` for what is missing."""

    def __init__(self) -> None:
        self._nodes: dict[Member, _Node] = {}
        self._views: dict[tuple[Any, ...], tuple[Member, Any]] = {}
        self._messages: dict[tuple[_Phase, str], dict[int, tuple[_Who, bytes]]] = {}
        self._stays: list[tuple[Member, int, _Phase, str, _Stay]] = []
        self.asked_to_leave: set[tuple[int, int, str]] = set()  #: (node, session, group)
        self._closed: set[_Who] = set()  #: sessions that have ended

    # -- where a node is --------------------------------------------------------------------

    def started(self, me: Member) -> None:
        """A process begins."""
        self._nodes[me] = _Node(me, (NO_RING, me))

    def closed(self, me: Member, session: int) -> None:
        """A session has ended, or its process has."""
        self._closed.add((me.node, session))
        node = self._nodes.get(me)
        for key in [k for k in node.groups if k[0] == session] if node is not None else ():
            assert node is not None
            del node.groups[key]
            node.stays.pop(key).exit = node.place

    def stopped(self, me: Member) -> None:
        """A process has ended: it owes nothing from here on."""
        node = self._nodes.pop(me, None)
        if node is not None:
            self._new_phase(node, ())

    def placed(self, me: Member, position: int) -> None:
        """The process is at this position of its ring."""
        self._nodes[me].place = position

    def viewed(self, me: Member, view: View) -> None:
        """A transitional or regular view: a new phase."""
        node = self._nodes[me]
        if view.transitional:
            self._new_phase(node, ("to", view.previous, view.id) if view.previous != NO_RING else (view.id, me))
        else:
            self._new_phase(node, ("in", view.id))

    def _new_phase(self, node: _Node, phase: _Phase) -> None:
        regular = bool(node.phase) and node.phase[0] == "in"
        for stay in node.stays.values():
            # what follows the transitional view is the same for all that take this way; before, or when the
            # process dies, others may have got further than this one
            stay.exit = node.place if regular or not phase else None
            if not phase and node.place not in stay.seen:
                stay.exit = node.place - 1  # it may have died before this one was handed out
        node.phase, node.place = phase, -1
        node.stays = {}
        for session, group in sorted(node.groups):
            self._stay(node, session, group)

    def _stay(self, node: _Node, session: int, group: str) -> None:
        members = frozenset(node.groups[session, group])
        stay = node.stays[session, group] = _Stay(node.place, [(node.place, members)])
        self._stays.append((node.me, session, node.phase, group, stay))

    # -- what sessions are given ------------------------------------------------------------

    def on_view(self, me: Member, session: int, data: dict[str, Any]) -> None:
        """A session is given a group view."""
        node, group = self._nodes[me], str(data["group"])
        members = [_who(row) for row in data["members"]]
        joined = [(*_who(row), str(row["reason"])) for row in data["joined"]]
        left = [(*_who(row), str(row["reason"])) for row in data["left"]]
        before = node.groups.get((session, group))
        self._check_same(node, group, before, (members, joined, left))
        self._check_deltas(node, session, group, before, members, joined, left)
        self._check_reasons(node, group, joined, left)
        mine = (me.node, session)
        if mine in members:
            node.groups[session, group] = members
            if before is None:
                self._stay(node, session, group)
            else:
                node.stays[session, group].known.append((node.place, frozenset(members)))
        elif before is not None:
            del node.groups[session, group]
            node.stays.pop((session, group)).exit = node.place

    def _check_same(self, node: _Node, group: str, before: list[_Who] | None, what: Any) -> None:
        """G1: the same change at the same place for all that knew the same members."""
        key = (node.phase, group, node.place, None if before is None else tuple(before))
        first, known = self._views.setdefault(key, (node.me, what))
        if known != what:
            raise Violation(
                "CPG-G1",
                f"group {group} at {_at(node.place)} of {node.phase}: node {node.me.node} has (members, joined, "
                f"left) {what}, node {first.node} had {known}",
            )

    @staticmethod
    def _check_deltas(
        node: _Node,
        session: int,
        group: str,
        before: list[_Who] | None,
        members: list[_Who],
        joined: list[_Entry],
        left: list[_Entry],
    ) -> None:
        """G1, G3: the lists fit each other; who leaves was there, once; no ghosts."""
        text = f"group {group}, session {session} of node {node.me.node}: {members}, joined {joined}, left {left}"
        if len(set(members)) != len(members):
            raise Violation("CPG-G1", f"{text}: somebody is in it twice")
        if before is None:
            if (node.me.node, session) not in [entry[:2] for entry in joined]:
                raise Violation("CPG-G1", f"{text}: its first view is not that of its joining")
            return
        gone, new = {entry[:2] for entry in left}, {entry[:2] for entry in joined}
        if not gone <= set(before):
            raise Violation("CPG-G3", f"{text}: somebody leaves who was not in {before}")
        if set(members) != (set(before) - gone) | new:
            raise Violation("CPG-G1", f"{text}: does not follow from {before}")

    def _check_reasons(self, node: _Node, group: str, joined: list[_Entry], left: list[_Entry]) -> None:
        """G3: each leave has its right reason. (Who left in another ring is found gone when they merge.)"""
        for who, session, reason in left:
            wrong = {
                "leave": (who, session, group) not in self.asked_to_leave,
                "procdown": (who, session) not in self._closed and (who, session, group) not in self.asked_to_leave,
                "nodedown": node.place != -1,
            }.get(reason, True)
            if wrong:
                raise Violation(
                    "CPG-G3",
                    f"group {group} at node {node.me.node}: session {session} of node {who} left: {reason!r}",
                )
        for who, session, reason in joined:
            if reason not in ("join", "nodeup"):
                raise Violation("CPG-G3", f"group {group}: session {session} of node {who} joined with {reason!r}")

    def on_message(self, me: Member, session: int, data: dict[str, Any]) -> None:
        """A session is given a message."""
        node, group = self._nodes[me], str(data["group"])
        sender, body = _who(data["sender"]), bytes(data["data"])
        members = node.groups.get((session, group))
        if members is None:
            raise Violation("CPG-G2", f"{_text(node, session, group, sender)} to one that is no member")
        if sender not in members:
            raise Violation("CPG-G4", f"{_text(node, session, group, sender)} who is not in its list {members}")
        stay = node.stays[session, group]
        if stay.seen and stay.seen[-1] >= node.place:
            last = _at(stay.seen[-1])
            raise Violation("CPG-G2", f"{_text(node, session, group, sender)} twice, or after that at {last}")
        stay.seen.append(node.place)
        known = self._messages.setdefault((node.phase, group), {}).setdefault(node.place, (sender, body))
        if known != (sender, body):
            raise Violation("CPG-G2", f"{_text(node, session, group, sender)}: others had one of {known[0]} there")

    # -- the end ----------------------------------------------------------------------------

    def finish(self) -> None:
        """G2: every member got every message between its joining and its leaving."""
        for me, session, phase, group, stay in self._stays:
            messages = self._messages.get((phase, group), {})
            current = self._nodes.get(me)
            end = stay.exit
            if end is None and current is not None and current.phase == phase:
                end = current.place
            due = [
                place
                for place, (sender, _) in sorted(messages.items())
                if place > stay.entry and (end is None or place <= end) and sender in _known_at(stay, place)
            ]
            if due != stay.seen:
                missing = sorted(set(due) ^ set(stay.seen))[0]
                raise Violation(
                    "CPG-G2",
                    f"group {group}: session {session} of node {me.node} was a member from {_at(stay.entry)} to "
                    f"{'the end' if end is None else _at(end)} of {phase}; others differ at {_at(missing)}",
                )

    def check_lists(self, lists: dict[int, dict[str, list[_Who]]], expected: dict[str, set[_Who]]) -> None:
        """G3 when all is calm: every node knows the same members, those that live and have joined; no ghosts."""
        for node, groups in sorted(lists.items()):
            found = {name: set(members) for name, members in groups.items() if members}
            if found != expected:
                raise Violation("CPG-G3", f"node {node} has group lists {found}, there ought to be {expected}")


def _text(node: _Node, session: int, group: str, sender: _Who) -> str:
    return f"group {group}, session {session} of node {node.me.node}: message of {sender} at {_at(node.place)}"


def _known_at(stay: _Stay, place: int) -> frozenset[_Who]:
    """Whom the session knew before what happened at this place."""
    return [members for since, members in stay.known if since < place or since < 0][-1]


def _who(row: dict[str, Any]) -> _Who:
    return (int(row["node"]), int(row["session"]))


def _at(place: int) -> str:
    return "its beginning" if place < 0 else f"{place >> 16}.{place & 0xFFFF}"
