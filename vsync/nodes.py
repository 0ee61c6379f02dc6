"""Changes of the set of nodes: an operator's command, a message in the agreed order, and the answer.

A command is checked at once, by ``vsync.roster.RULES``, and again, by the same rules, where its message is
delivered: in a primary view, with the roster that it was made for. There every member takes the new roster into its
record and the ring re-forms; the next primary view is counted by it, and only then the operator is answered. It is
sent SAFE, so that a member that does not see it in this view has at least received it.

What is delivered while a view is being installed changes nothing: whether that view is primary has been decided
without it. If the change got lost with its view the operator is told, and says it again.

Pure; a service of every node, like ``vsync.groups``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import msgpack

from vsync.counting import counted
from vsync.errors import Backpressure, ConfigError
from vsync.quorum import REMOVED, Says, base_of, judge
from vsync.roster import KINDS, Change, Refused, Roster, Situation, changed, differences
from vsync.service import Credentials, Host
from vsync.types import ClusterConfig, Entry, Member, Peer, View

__all__ = ["NodesHost", "NodesService"]

TAG = 3
VERBS = ("ls", *KINDS)
BUSY = "another change is on its way: it must be in force first; wait a moment and say it again"
OVERTAKEN = "the set of nodes has changed meanwhile: look at vsync nodes, and say it again if it is still wanted"
LOST = "the view broke before the change was in force: nothing has been changed; say it again"
NO_QUORUM = "the view is not primary, so nothing can be changed here: {why}"
DIFFERS = "this host's file: {what}; the cluster's own word goes first: paste what vsync nodes export prints"
OUTSIDE = "the cluster's nodes do not include this one: run vsync nodes add at a member, or stop it"


class NodesHost(Host, Protocol):
    """What this service needs of its node besides."""

    @property
    def roster(self) -> Roster:
        """By which the node counts."""
        ...

    @property
    def file(self) -> Roster:
        """What the node's configuration said at its start."""
        ...

    @property
    def outcast(self) -> bool:
        """Whether the newest roster that the node has heard of is without it."""
        ...

    @property
    def gone(self) -> tuple[int, ...]:
        """Ids that were removed, as far as the node has heard."""
        ...

    def in_view(self) -> bool:
        """Whether the ring is the one of the current view."""
        ...

    def enroll(self, roster: Roster, keep: bool) -> None:
        """Count by ``roster`` and form the next ring; ``keep``: an operator's override goes on."""
        ...


@dataclass(slots=True)
class _Command:
    session: int
    rid: int
    after: Roster
    delivered: bool = False


class NodesService:
    """Takes commands of local sessions, applies ordered ones. ``owner`` and root may command.

    ``check`` raises ``ConfigError`` for a configuration whose addresses this node's transport cannot use.
    """

    name = "nodes"
    tag = TAG

    def __init__(self, owner: int, check: Callable[[ClusterConfig], None] | None = None) -> None:
        self._owner = owner
        self._check = check
        self._sessions: dict[int, Credentials] = {}
        self._commands: dict[int, _Command] = {}
        self._serial = 0
        self._changed_in: object = None  #: the view in which a change was made
        self._in_force = 0  #: the version that the last primary view was counted by

    def attach(self, host: Host, now: int) -> None:
        """Remember where effects go; say so if the file is not what counts."""
        self.host: NodesHost = host  # type: ignore[assignment]
        self._in_force = self.host.roster.version
        if self.host.roster.version and (what := self._differs()):
            self.host.event("nodes_differ", what=what, remedy=DIFFERS.format(what="; ".join(what)))

    def announce(self, attempts: Sequence[View] = ()) -> bytes:
        """Nothing: the node's entry names its roster anyway."""
        return b""

    # ------------------------------------------------------------ commands

    def open(self, session: int, who: Credentials, now: int) -> None:
        """A client connected."""
        self._sessions[session] = who

    def close(self, session: int, now: int) -> None:
        """A client has gone; what it has commanded is done all the same."""
        self._sessions.pop(session, None)

    def request(self, session: int, rid: int, verb: str, args: Mapping[str, Any], now: int) -> None:
        """``ls``, and the changes ``add``, ``remove``, ``replace``, ``set``."""
        if verb == "ls":
            self.host.reply(session, rid, self.listing())
        elif verb not in KINDS:
            self._no(session, rid, "unknown_verb", f"nodes know {', '.join(VERBS)}, not {verb!r}")
        elif self._sessions[session].uid not in (0, self._owner):
            self._no(session, rid, "denied", "only root and the user that the daemon runs as may do this")
        else:
            try:
                self._command(session, rid, self._wanted(verb, args))
            except Refused as error:
                self._no(session, rid, "invalid", str(error))
            except Backpressure as error:
                self._no(session, rid, "backpressure", str(error))

    def _wanted(self, verb: str, args: Mapping[str, Any]) -> Change:
        roster, named = self.host.roster, args.get("node")
        if verb == "add" and named is None:
            named = max((*roster.nodes, *roster.gone)) + 1
        peer = next((p for p in roster.peers if named in (p.node, p.name, str(p.node))), None)
        node = peer.node if peer is not None else named
        if verb == "add" and peer is None and isinstance(node, str) and node.isdecimal():
            node = int(node)
        if type(node) is not int:
            raise Refused(f"there is no node {named!r}: vsync nodes lists them")
        row = verb, node, args.get("name", ""), list(args.get("addresses", ())), args.get("votes")
        change = Change.of(row)
        if change is None:
            raise Refused("node and votes are numbers, name is text, addresses are a list of texts")
        return change

    def _command(self, session: int, rid: int, change: Change) -> None:
        view, roster = self.host.view, self.host.roster
        if view is None or not view.primary:
            why = judge(view.entries).why if view is not None else "there is none yet"
            self._no(session, rid, "no_quorum", NO_QUORUM.format(why=why))
            return
        if self._changed_in == view.id:
            self._no(session, rid, "busy", BUSY)
            return
        if change.kind == "remove" and change.node == self.host.me.node:
            raise Refused("a node cannot see the end of its own removal: say it at another node")
        after = changed(roster, change, self._situation(view))
        if self._check is not None:
            try:
                self._check(replace(self.host.config, peers=after.peers))
            except ConfigError as error:
                raise Refused(str(error)) from None
        who, serial = self._sessions[session], self._serial + 1
        body = serial, roster.digest, change.row, who.uid, who.pid, who.name
        self.host.submit(bytes((TAG,)) + msgpack.packb(body), safe=True)
        self._serial = serial
        self._commands[serial] = _Command(session, rid, after)

    def _situation(self, view: View) -> Situation:
        quorum = self.host.config.quorum
        overridden = any(entry.says & Says.OVERRIDE for entry in view.entries.values())
        return Situation(
            present=view.nodes,
            stays=(lambda after: True) if overridden else partial(_stays, view),
            excludes=quorum.policy not in ("two_node", "none"),
            lone=quorum.auto_tie_breaker,
        )

    # ------------------------------------------------------------ the ordered stream

    def deliver(self, origin: Member, position: int, payload: bytes, installing: bool, now: int) -> None:
        """A command in its place of the order: the same at all members of the view."""
        message = _decode(payload)
        if message is None:
            self.host.event("nodes.garbage", origin=origin.node)
            return
        serial, digest, change, who = message
        command = self._commands.get(serial) if origin == self.host.me else None
        if command is not None:
            command.delivered = True
        view = self.host.view
        if installing or view is None or not self.host.in_view():
            return  # if others have applied it, the next view says so
        if not view.primary:
            self._end(serial, command, "no_quorum", NO_QUORUM.format(why=judge(view.entries).why))
        elif digest != self.host.roster.digest or self._changed_in == view.id:
            self._end(serial, command, "overtaken", OVERTAKEN)
        else:
            try:
                after = changed(self.host.roster, change, self._situation(view))
            except Refused as error:
                self._end(serial, command, "invalid", str(error))
            else:
                self._apply(view, after, change, origin, who)

    def _apply(self, view: View, after: Roster, change: Change, origin: Member, who: Mapping[str, Any]) -> None:
        self._changed_in = view.id
        self.host.event("nodes_changed", version=after.version, what=change.text(), by=origin.node, **who)
        if after.peer(self.host.me.node) is None:
            self.host.event("removed", remedy=REMOVED.format(node=self.host.me.node))
        keep = any(entry.says & Says.OVERRIDE for entry in view.entries.values())
        self.host.enroll(after, keep)

    def view(self, view: View, now: int) -> None:
        """A primary view is in force with the roster that counts: answer those whose change it is, or is not."""
        if view.transitional or not view.primary:
            return
        roster = self.host.roster
        if roster.version != self._in_force:
            self._in_force = roster.version
            self.host.event("nodes_in_force", version=roster.version, nodes=list(roster.nodes))
        for serial, command in sorted(self._commands.items()):
            if roster == command.after:
                del self._commands[serial]
                self.host.reply(command.session, command.rid, self.listing())
            elif command.delivered:
                self._end(serial, command, "lost", LOST)

    def _end(self, serial: int, command: _Command | None, code: str, text: str) -> None:
        if command is not None:
            del self._commands[serial]
            self._no(command.session, command.rid, code, text)

    def _no(self, session: int, rid: int, code: str, text: str) -> None:
        self.host.refuse(session, rid, code, text)

    # ------------------------------------------------------------ for people

    def listing(self) -> dict[str, Any]:
        """What ``ls`` answers, and a change that is in force."""
        roster, view = self.host.roster, self.host.view
        present = view.nodes if view is not None else ()
        return {
            **self.status(),
            "nodes": [
                {
                    "id": peer.node,
                    "name": peer.name,
                    "addresses": list(peer.addresses),
                    "votes": peer.votes,
                    "since": born,
                    "state": "member" if peer.node in present else "absent",
                }
                for peer, born in zip(roster.peers, roster.born, strict=True)
            ],
        }

    def status(self) -> dict[str, Any]:
        """Version, and what is not as it should be."""
        roster = self.host.roster
        differs = self._differs() if roster.version else []
        remedy = DIFFERS.format(what="; ".join(differs)) if differs else ""
        if self.host.outcast:
            remedy = OUTSIDE
            if self.host.me.node in self.host.gone:
                remedy = REMOVED.format(node=self.host.me.node)
        return {
            "version": roster.version,
            "digest": roster.digest.hex(),
            "under_way": len(self._commands),
            "outside": self.host.outcast,
            "differs": differs,
            "remedy": remedy,
        }

    def _differs(self) -> list[str]:
        """In what the file of this node is not what counts. Its own address is its own affair."""
        roster, file, me = self.host.roster, self.host.file, self.host.me.node
        own = file.peer(me)

        def as_here(peer: Peer) -> Peer:
            return replace(peer, addresses=own.addresses) if own is not None and peer.node == me else peer

        if roster.peer(me) is None:
            return []
        return differences(file, replace(roster, peers=tuple(map(as_here, roster.peers))))

    # ------------------------------------------------------------ the rest of the Service interface

    def token(self, now: int) -> None:
        """Nothing waits for tokens."""

    def fire(self, now: int) -> None:
        """No timers."""

    def next_deadline(self) -> int | None:
        """No timers."""
        return None

    def leaving(self, now: int) -> None:
        """Nothing to say."""

    def may_leave(self) -> bool:
        """At once."""
        return True


def _stays(view: View, after: Roster) -> bool:
    """Whether those of this view's members that are left would be a primary view by the new roster."""
    bases, names = ((view.id, base_of(view.entries)),), ((view.id, after.digest),)
    entries = {
        entry.member.node: Entry(
            entry.member, view.id, 0, {}, mark=view.id, lineage=1, bases=bases, terms=entry.terms, names=names
        )
        for entry in view.entries.values()
        if after.peer(entry.member.node)
    }
    return bool(entries) and judge(counted(entries, {after.digest: after})).primary


def _decode(payload: bytes) -> tuple[int, bytes, Change, dict[str, Any]] | None:
    """(serial, digest of the roster that it is for, change, who), or ``None`` for what is none of ours."""
    try:
        serial, digest, row, uid, pid, program = msgpack.unpackb(payload[1:])
        change = Change.of(row)
    except Exception:  # noqa: BLE001 - whatever a peer's bytes do to the decoder
        return None
    fits = (type(serial), type(digest), type(uid), type(pid), type(program)) == (int, bytes, int, int, str)
    return (serial, digest, change, {"uid": uid, "pid": pid, "program": program}) if fits and change else None
