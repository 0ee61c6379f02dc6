"""Named process groups over one ring: each group is one ordered stream ``View | Message`` (CPG-G1..G4).

A process joins and leaves by ordered messages, so everybody sees it at the same place of the stream. A process
whose connection breaks leaves exactly once, with its reason. When rings merge, each node's *first* message in the
new ring lists its local processes (it goes ahead of whatever waits), so a message can never come from a process
that its receivers do not know (CPG-G4).

Reasons, in CPG's words: ``join``, ``leave``, ``procdown``, ``nodedown``, ``nodeup``.

Ordered messages are ``tag byte + msgpack``; requests and pushes are described in ``docs/ipc.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgpack

from vsync.errors import Backpressure, MessageTooLarge
from vsync.service import Credentials, Host
from vsync.types import MAX_MESSAGE, Member, View

__all__ = ["GroupService", "Process"]

TAG = 2
NAME_LIMIT = 128  #: bytes of a group's name, as in CPG
ROW = 36  #: bytes that a membership takes in LIST, at most, besides the two names

JOIN, LEAVE, SEND, DOWN, LIST, BATCH = range(6)


class Process(NamedTuple):
    """One member of a group: a session of a node. Ordered by node, so that all list members alike."""

    node: int
    incarnation: int
    session: int
    name: str
    pid: int

    def describe(self, **more: Any) -> dict[str, Any]:
        """For clients."""
        return {"node": self.node, "session": self.session, "name": self.name, "pid": self.pid, **more}


class GroupService:
    """The replicated group lists, and the local sessions that are members."""

    name = "group"
    tag = TAG

    def __init__(self) -> None:
        self.groups: dict[str, dict[tuple[Member, int], Process]] = {}
        self._names: dict[int, tuple[str, int]] = {}  #: program name and pid by local session
        self._waiting: dict[tuple[int, str], int] = {}  #: rid of a join or leave under way
        self._sends: dict[int, tuple[int, int]] = {}  #: sends that wait for their delivery: (session, rid)
        self._next_send = 0
        self._sizes: dict[tuple[int, str], int] = {}  #: bytes of each local membership in LIST ..
        self._list_size = 0  #: .. and their sum
        self._had_any = False  #: somebody may know processes of this node: an empty list, too, is news at a merge
        self._downs: list[int] = []  #: members that have gone, while the send queue has no room to say so
        self._parked: dict[tuple[int, str], tuple[int, bytes, bool]] = {}  #: batches that wait for room: rid, safe

        self._verbs: dict[str, Callable[[int, int, str, Mapping[str, Any]], None]] = {
            "join": self._request_join, "leave": self._request_leave, "send": self._request_send,
            "sends": self._request_sends,
        }  # fmt: skip

    def attach(self, host: Host, now: int) -> None:
        """Remember where effects go."""
        self.host = host

    def announce(self, attempts: Sequence[View] = ()) -> bytes:
        """Nothing: the list of processes is a first message (pitfalls K1)."""
        return b""

    # ------------------------------------------------------------ the ordered stream

    def deliver(self, origin: Member, position: int, payload: bytes, installing: bool, now: int) -> None:
        """Apply one ordered message."""
        message = _decode(payload)
        if message is None:  # the same nonsense at every member, and skipped at every member
            self.host.event("group.garbage", origin=origin.node)
            return
        kind, group, session, more = message
        if kind == BATCH:
            self._hand_out(origin, position, group, session, "messages", ("batch", more))
        elif kind == SEND:
            self._deliver_message(origin, position, group, session, more)
        elif kind == JOIN:
            self._add(group, [Process(*origin, session, *more)], "join")
            self._settle(origin, session, group)
        elif kind == LEAVE:
            self._remove(group, lambda p: _is(p, origin, session), "leave")
            self._settle(origin, session, group)
        elif kind == DOWN:
            for name in sorted(self.groups):
                self._remove(name, lambda p: _is(p, origin, session), "procdown")
        elif kind == LIST:
            self._apply_list(origin, more)

    def view(self, view: View, now: int) -> None:
        """A ring view: drop processes of members that are gone; tell strangers about ours."""
        if view.transitional:
            return
        present = set(view.members)
        for group in sorted(self.groups):
            if not self._remove(group, lambda p: Member(p.node, p.incarnation) not in present, "nodedown"):
                self._push_view(group, (), ())
        if len({entry.old_ring for entry in view.entries.values()}) > 1 and self._had_any:
            self.host.submit(self._encode(LIST, "", 0, self._local()), urgent=True)

    # ------------------------------------------------------------ local sessions

    def open(self, session: int, who: Credentials, now: int) -> None:
        """A client connected."""
        self._names[session] = (who.name or f"pid {who.pid}", who.pid)

    def close(self, session: int, now: int) -> None:
        """A client has gone: its processes leave once, in order."""
        self._names.pop(session, None)
        self._sends = {k: v for k, v in self._sends.items() if v[0] != session}
        self._parked = {k: v for k, v in self._parked.items() if k[0] != session}
        joining = any(s == session for s, _ in self._waiting)
        self._waiting = {k: v for k, v in self._waiting.items() if k[0] != session}
        key = (self.host.me, session)
        if joining or any(key in members for members in self.groups.values()):
            self._downs.append(session)
            self._say_downs()

    def request(self, session: int, rid: int, verb: str, args: Mapping[str, Any], now: int) -> None:
        """``join``, ``leave``, ``send``, ``sends``."""
        group = args.get("group")
        if not isinstance(group, str) or not 0 < len(group.encode()) <= NAME_LIMIT:
            self.host.refuse(session, rid, "invalid", f"a group name is 1..{NAME_LIMIT} bytes of text")
            return
        handler = self._verbs.get(verb)
        if handler is None:
            self.host.refuse(session, rid, "unknown_verb", f"groups know {', '.join(self._verbs)}, not {verb!r}")
            return
        try:
            handler(session, rid, group, args)
        except Backpressure as error:
            self.host.refuse(session, rid, "backpressure", str(error))
        except MessageTooLarge as error:
            self.host.refuse(session, rid, "too_large", str(error))

    def _request_join(self, session: int, rid: int, group: str, args: Mapping[str, Any]) -> None:
        if self._is_member(session, group) or (session, group) in self._waiting:
            self.host.refuse(session, rid, "exists", f"this session is a member of {group!r} already")
            return
        name, pid = self._names.get(session, ("", 0))
        size = len(group.encode()) + len(name.encode()) + ROW
        if self._list_size + size > MAX_MESSAGE:  # all of them must fit into the one message of a merge
            self.host.refuse(session, rid, "too_many", "the processes of this node are in too many groups")
            return
        self.host.submit(self._encode(JOIN, group, session, (name, pid)))
        self._sizes[session, group] = size
        self._list_size += size
        self._waiting[session, group] = rid
        self._had_any = True

    def _request_leave(self, session: int, rid: int, group: str, args: Mapping[str, Any]) -> None:
        if not self._is_member(session, group):
            self.host.refuse(session, rid, "not_member", f"this session is not a member of {group!r}")
            return
        if (session, group) in self._waiting:  # the first answer must not be lost
            self.host.refuse(session, rid, "not_member", f"this session is leaving {group!r} already")
            return
        self.host.submit(self._encode(LEAVE, group, session, None))
        self._waiting[session, group] = rid

    def _request_send(self, session: int, rid: int, group: str, args: Mapping[str, Any]) -> None:
        data = args.get("data")
        if not isinstance(data, bytes):
            self.host.refuse(session, rid, "invalid", "data must be bytes")
            return
        safe = self._safe(session, rid, group, args)
        if safe is None:
            return
        if (session, group) in self._parked:
            raise Backpressure("earlier messages of this session wait for the token")
        wait = bool(args.get("wait"))
        self._next_send += 1
        payload = self._encode(SEND, group, session, (self._next_send if wait else 0, data))
        self.host.submit(payload, safe=safe)
        if wait:
            self._sends[self._next_send] = (session, rid)
        else:
            self.host.reply(session, rid, {})

    def _request_sends(self, session: int, rid: int, group: str, args: Mapping[str, Any]) -> None:
        """Many messages at once. It is not refused for lack of room, but answered when there was some."""
        batch = args.get("batch")
        if not isinstance(batch, bytes) or not _is_batch(batch):
            self.host.refuse(session, rid, "invalid", "batch must be a list of bytes, packed with msgpack")
            return
        safe = self._safe(session, rid, group, args)
        if safe is None:
            return
        if (session, group) in self._parked:
            self.host.refuse(session, rid, "backpressure", "send the next batch when the last one is accepted")
            return
        payload = self._encode(BATCH, group, session, batch)
        try:
            self.host.submit(payload, safe=safe)
        except Backpressure:
            self._parked[session, group] = rid, payload, safe
        else:
            self.host.reply(session, rid, {})

    def _safe(self, session: int, rid: int, group: str, args: Mapping[str, Any]) -> bool | None:
        """Whether messages are to be safe; ``None`` if the request has been refused."""
        if not self._is_member(session, group):
            self.host.refuse(session, rid, "not_member", f"this session is not a member of {group!r}")
            return None
        order = args.get("order", "agreed")
        if order not in ("agreed", "safe"):
            self.host.refuse(session, rid, "invalid", "order is 'agreed' or 'safe'")
            return None
        return bool(order == "safe")

    # ------------------------------------------------------------ housekeeping of the Service interface

    def token(self, now: int) -> None:
        """There may be room in the send queue."""
        if self._downs:
            self._say_downs()
        if self._parked:
            self._send_parked()

    def fire(self, now: int) -> None:
        """No timers."""

    def next_deadline(self) -> int | None:
        """No timers."""
        return None

    def leaving(self, now: int) -> None:
        """The ring view says it all."""

    def may_leave(self) -> bool:
        """At once."""
        return True

    def status(self) -> dict[str, Any]:
        """Groups and their members."""
        return {name: [p.describe() for p in self._members(name)] for name in sorted(self.groups)}

    # ------------------------------------------------------------ details

    def _say_downs(self) -> None:
        """Unlike a request, an end cannot be refused: it waits for room."""
        while self._downs:
            try:
                self.host.submit(self._encode(DOWN, "", self._downs[0], None))
            except Backpressure:
                return
            self._downs.pop(0)

    def _send_parked(self) -> None:
        for (session, group), (rid, payload, safe) in list(self._parked.items()):
            try:
                self.host.submit(payload, safe=safe)
            except Backpressure:
                return
            del self._parked[session, group]
            self.host.reply(session, rid, {})

    def _encode(self, kind: int, group: str, session: int, more: Any) -> bytes:
        packed: bytes = msgpack.packb((kind, group, session, more))
        return bytes((TAG,)) + packed

    def _deliver_message(self, origin: Member, position: int, group: str, session: int, more: list[Any]) -> None:
        number, data = more
        self._hand_out(origin, position, group, session, "message", ("data", data))
        if origin == self.host.me and number in self._sends:
            waiting, rid = self._sends.pop(number)
            self.host.reply(waiting, rid, {})

    def _hand_out(
        self, origin: Member, position: int, group: str, session: int, kind: str, what: tuple[str, bytes]
    ) -> None:
        """To the members at this node, unless the sender is none. What is in it costs this node nothing."""
        sender = self.groups.get(group, {}).get((origin, session))
        if sender is None:
            return
        assert self.host.view is not None
        key, data = what
        pushed = {"group": group, "sender": sender.describe(), key: data, "seq": f"{self.host.view.id}:{position}"}
        for local in self._local_members(group):
            self.host.push(local, "group", kind, pushed)

    def _apply_list(self, origin: Member, rows: list[list[Any]]) -> None:
        listed: dict[str, list[Process]] = {}
        for group, session, name, pid in rows:
            listed.setdefault(group, []).append(Process(*origin, session, name, pid))
        for group in sorted(set(self.groups) | set(listed)):
            known = {p.session for p in listed.get(group, ())}
            self._remove(group, _stale(origin, known), "procdown")
            self._add(group, listed.get(group, []), "nodeup")

    def _add(self, group: str, processes: list[Process], reason: str) -> None:
        members = self.groups.setdefault(group, {})
        new = [p for p in processes if (Member(p.node, p.incarnation), p.session) not in members]
        for process in new:
            members[Member(process.node, process.incarnation), process.session] = process
        if new:
            self._push_view(group, [p.describe(reason=reason) for p in new], ())
        if not members:
            del self.groups[group]

    def _remove(self, group: str, gone: Callable[[Process], bool], reason: str) -> bool:
        members = self.groups.get(group, {})
        left = [p for p in self._members(group) if gone(p)]
        if not left:
            return False
        leavers = [p.session for p in left if (p.node, p.incarnation) == self.host.me]
        for process in left:
            del members[Member(process.node, process.incarnation), process.session]
        for session in leavers:
            self._list_size -= self._sizes.pop((session, group), 0)
        self._push_view(group, (), [p.describe(reason=reason) for p in left], also=leavers)
        if not members:
            self.groups.pop(group, None)
        return True

    def _push_view(self, group: str, joined: Any, left: Any, also: list[int] | None = None) -> None:
        ring = self.host.view
        body = {
            "group": group,
            "view": {"id": str(ring.id), "primary": ring.primary} if ring else {},
            "members": [p.describe() for p in self._members(group)],
            "joined": list(joined),
            "left": list(left),
        }
        for session in [*self._local_members(group), *(also or ())]:
            if session in self._names:
                self.host.push(session, "group", "view", body)

    def _settle(self, origin: Member, session: int, group: str) -> None:
        if origin == self.host.me:
            rid = self._waiting.pop((session, group), None)
            if rid is not None:
                self.host.reply(session, rid, {})

    def _members(self, group: str) -> list[Process]:
        return sorted(self.groups.get(group, {}).values())

    def _local_members(self, group: str) -> list[int]:
        return [s for m, s in self.groups.get(group, {}) if m == self.host.me]

    def _local(self) -> list[tuple[str, int, str, int]]:
        me = self.host.me
        return [
            (group, p.session, p.name, p.pid)
            for group in sorted(self.groups)
            for p in self._members(group)
            if p[:2] == me
        ]

    def _is_member(self, session: int, group: str) -> bool:
        return (self.host.me, session) in self.groups.get(group, {})


_SHAPES = {JOIN: (str, int), SEND: (int, bytes), LIST: (str, int, str, int)}


def _decode(payload: bytes) -> tuple[int, str, int, Any] | None:
    """(kind, group, session, more) of a message of another node, or ``None`` if it is none of ours."""
    try:
        kind, group, session, more = msgpack.unpackb(payload[1:])
        rows = more if kind == LIST else [more] if kind in _SHAPES else []
        fits = all(tuple(map(type, row)) == _SHAPES[kind] for row in rows)
    except Exception:  # noqa: BLE001 - whatever a peer's bytes do to the decoder
        return None
    if kind == BATCH:
        fits = type(more) is bytes
    known = kind in (JOIN, LEAVE, SEND, DOWN, LIST, BATCH)
    return (kind, group, session, more) if known and fits and (type(group), type(session)) == (str, int) else None


def _is_batch(batch: bytes) -> bool:
    try:
        found = msgpack.unpackb(batch)
    except Exception:  # noqa: BLE001 - whatever a client's bytes do to the decoder
        return False
    return isinstance(found, list) and bool(found) and set(map(type, found)) == {bytes}


def _is(process: Process, member: Member, session: int) -> bool:
    return (process.node, process.incarnation, process.session) == (*member, session)


def _stale(member: Member, known: set[int]) -> Callable[[Process], bool]:
    """Processes of the member that its own list does not name."""
    return lambda p: (p.node, p.incarnation) == member and p.session not in known
