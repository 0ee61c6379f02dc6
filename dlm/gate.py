"""Who may use which lockspace at this node: requests about lockspaces, and what their end means for clients.

A session has lockspaces *open*: the permission is looked at once, and a lock request costs one look into the
session's dictionary. What changes the registry takes its place in the ordered stream (``dlm.spaces``); the node
remembers the request under a *ticket* until the answer can be told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dlm import arguments
from dlm.handle import Handle
from dlm.handles import Session
from dlm.messages import Kind
from dlm.modes import FORCEUNLOCK, IVVALBLK, NONE
from dlm.names import Form
from dlm.options import PLAIN, Changes, Options
from dlm.spaces import CREATE, DEFAULT, EXCLUSIVE, FORCE_OTHERS, Ask, Ended, Space, Told

if TYPE_CHECKING:
    from dlm.home import Home

__all__ = ["Gate"]

Made = tuple[int, int, Options]  #: permissions, value limit, options

_WORDS = {
    "no_space": "there is no lockspace {!r}: dlm.connect(space=...) makes it, and so does `dlm space create`",
    "space_exists": "there is a lockspace {!r} already",
    "space_busy": "there are locks in lockspace {!r}",
    "closing": "lockspace {!r} is being released: no new locks",
    "too_many": "there are too many lockspaces to make {!r} as well",
    "permission": "no permission for lockspace {!r}",
    "lost": "this node's part in the cluster ended before the answer about lockspace {!r} was known",
    "no_quorum": "this node is not in a primary view: nothing can be decided about lockspace {!r}",
    "not_open": "lockspace {!r} is not open here: space_open opens it, and so does dlm.connect(space=...)",
}
_RULES = {"no_space": "E11", "closing": "E11", "not_open": "E11"}


class Pending:
    """A request about a lockspace that is on its way. ``again``: it may be made twice."""

    __slots__ = ("again", "body", "kind", "name", "rid", "sent", "session")

    def __init__(
        self, session: int, rid: int, name: str, kind: Kind, body: tuple[Any, ...], again: bool = False
    ) -> None:
        self.session = session
        self.rid = rid
        self.name = name
        self.kind = kind
        self.body = body
        self.again = again
        self.sent = False


class Gate:
    """The lockspaces of one node's clients. A part of ``Home``."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._pending: dict[int, Pending] = {}
        self._deferred: list[Told] = []  #: answers that could not be told yet (K9)
        self._ticket = 0

    # -- looked at by every request

    @staticmethod
    def entered(session: Session, args: Mapping[str, Any]) -> Space:
        """The lockspace that a lock request names. Raises ``BadArgument`` if it is not open (E11)."""
        name = args.get("space", "default")
        space = session.spaces.get(name) if isinstance(name, str) else None
        if space is None or space.shut:
            name = arguments.space(args)
            raise _refusal("not_open" if space is None else "closing", name)
        return space

    def seen(self, session: Session, args: Mapping[str, Any]) -> str:
        """The lockspace that somebody wants to look into: an open one, or one that might be opened."""
        name = arguments.space(args)
        if name not in session.spaces:
            space = self._home.table.spaces.get(name)
            if space is None or not space.permits(session.who.uid, session.who.gid):
                raise _refusal("no_space" if space is None else "permission", name)
        return name

    def limit(self, key: bytes) -> int:
        """How long the value block of this name may be."""
        space = self._home.table.spaces.get(key[: key.index(0)].decode()) if key[0] else DEFAULT
        return arguments.VALUE_LIMIT if space is None else space.value_limit

    # -- requests

    def open(
        self, session: int, rid: int, name: str, how: int, made: Made = (0, 0, PLAIN), fails: bool = False
    ) -> None:
        """Open a lockspace, making it as ``how`` says, with permissions, value limit and options ``made``.

        What is there already needs no message. ``fails``: an error is better than to wait for quorum.
        """
        space = self._home.table.spaces.get(name)
        if space is not None and space.release is None and how != EXCLUSIVE:
            self._opened(session, rid, space)
            return
        if fails and self._home.frozen:
            self._refuse(session, rid, "no_quorum", name)
            return
        who = self._home.sessions[session].who
        body = (how, who.uid, who.gid, *made)
        self._start(Pending(session, rid, name, Kind.SPACE_CREATE, body, again=how != EXCLUSIVE))

    def close(self, session: int, rid: int, name: str) -> None:
        """Free the session's locks in a lockspace as if the session had ended, and forget that it was open."""
        home = self._home
        opened = home.sessions[session].spaces
        space = opened.get(name)
        if space is None:
            self._refuse(session, rid, "not_open", name)
            return
        if name != DEFAULT.name:
            del opened[name]
        home.close_space(session, space, rid)

    def release(self, session: int, rid: int, name: str, force: int) -> None:
        """Release a lockspace: of one's own, or as root. It waits for no quorum."""
        home = self._home
        home.closings.run()
        space = home.table.spaces.get(name)
        if not home.open:
            code = "no_quorum"
        elif space is None:
            code = "no_space"
        elif not space.owned_by(home.sessions[session].who.uid):
            code = "permission"
        elif space.shut:
            code = "closing"
        elif force <= FORCE_OTHERS and self._own_locks(space):
            code = "space_busy"
        else:
            space.leaving = space.shut = True  # so that this stays so
            self._start(Pending(session, rid, name, Kind.SPACE_RELEASE, (force,)))
            return
        self._refuse(session, rid, code, name)

    def set_options(self, session: int, rid: int, name: str, changes: Changes) -> None:
        """Other options for a lockspace: of one's own, or as root, and for ``default`` as the daemon's user."""
        home = self._home
        space, uid = home.table.spaces.get(name), home.sessions[session].who.uid
        if not home.open:
            code = "no_quorum"
        elif space is None:
            code = "no_space"
        elif not (space.owned_by(uid) or (name == DEFAULT.name and uid in (0, home.host.config.uid))):
            code = "permission"
        else:
            self._start(Pending(session, rid, name, Kind.SPACE_SET, (changes,)))
            return
        self._refuse(session, rid, code, name)

    def _own_locks(self, space: Space) -> bool:
        handles = any(not handle.ending for handle in self._handles(space))
        return handles or any(key.startswith(space.prefix) for key, _ in self._home.orphans.values())

    def _handles(self, space: Space) -> Iterator[Handle]:
        for _, session in sorted(self._home.sessions.items()):
            yield from session.handles.under(space.prefix)

    def _start(self, pending: Pending) -> None:
        self._ticket += 1
        self._pending[self._ticket] = pending
        if self._home.linked:
            self._send(self._ticket, pending)

    def _send(self, ticket: int, pending: Pending) -> None:
        pending.sent = True
        self._home.send(pending.kind, (pending.name, pending.session, ticket, *pending.body))

    # -- what the table has decided

    def outcome(self, effect: Told | Ask | Ended) -> None:
        """Something about a lockspace, in its place in the order."""
        if isinstance(effect, Ended):
            self._ended(effect.space)
        elif isinstance(effect, Ask):
            if self._me in effect.nodes:
                self._home.closings.run()
                space = self._home.table.spaces.get(effect.space)
                busy = space is not None and self._owned_locks(space)
                self._home.send(Kind.SPACE_ANSWER, (effect.space, effect.position, busy))
        elif effect.node == self._me:
            self._deferred.append(effect)
            self.tell_deferred()

    def tell_deferred(self) -> None:
        """Give the answers that may be given by now."""
        if not self._home.open or self._home.holding:
            return
        told, self._deferred = self._deferred, []
        for effect in told:
            self._tell(effect)

    def _tell(self, effect: Told) -> None:
        space = self._home.table.spaces.get(effect.space)
        pending = self._pending.pop(effect.ticket, None)
        kind = None if pending is None else pending.kind
        if space is not None and kind is Kind.SPACE_RELEASE:
            space.leaving, space.shut = False, space.release is not None
        if pending is None:
            self._bound(effect.space, space)
        elif pending.session not in self._home.sessions:
            return
        elif effect.code:
            self._refuse(pending.session, pending.rid, effect.code, effect.space)
        elif kind is Kind.SPACE_RELEASE:
            self._home.host.reply(pending.session, pending.rid, {})
        elif space is None:
            self._refuse(pending.session, pending.rid, "no_space", effect.space)
        elif kind is Kind.SPACE_SET:
            self._home.host.reply(pending.session, pending.rid, space.row())
        else:
            self._opened(pending.session, pending.rid, space)

    def _opened(self, session: int, rid: int, space: Space) -> None:
        owner = self._home.sessions[session]
        if not space.permits(owner.who.uid, owner.who.gid):
            self._refuse(session, rid, "permission", space.name)
            return
        owner.spaces[space.name] = space
        self._home.host.reply(session, rid, space.row())

    def _owned_locks(self, space: Space) -> bool:
        """Whether names of the lockspace that are private to this node have locks."""
        return any(
            name.folded is not None or (name.resource is not None and bool(name.resource.locks))
            for key, name in self._home.table.names.items()
            if name.form is Form.PRIVATE and key.startswith(space.prefix)
        )

    def _ended(self, name: str) -> None:
        """The lockspace is no more: its locks are lost, its waiters hear why (E11)."""
        home = self._home
        space = Space(name)
        for handle in list(self._handles(space)):
            self._drop(handle, "no_space", name)
        for who in [who for who, (key, _) in home.orphans.items() if key.startswith(space.prefix)]:
            del home.orphans[who]
        for session in home.sessions.values():
            session.spaces.pop(name, None)

    def _drop(self, handle: Handle, code: str, name: str) -> None:
        """The lock's name is gone. What this node has still on its way for it must not bring it back."""
        home = self._home
        if handle.group is not None:
            handle.group.dissolve()
        if handle.mode == NONE and handle.request is not None:
            self._refuse(handle.session, handle.request.rid, code, name)
            handle.request = None
        home.teller.lose(handle, "released")
        if handle.key in home.outbox.under_way:
            flags = FORCEUNLOCK | IVVALBLK
            home.send(Kind.UNLOCK, (handle.key, handle.session, handle.h, 0, flags, None), (handle.key,))

    # -- lives

    def new_life(self) -> None:
        """What is on its way will be asked again, but for what must not happen twice."""
        self._deferred.clear()
        for ticket, pending in list(self._pending.items()):
            if pending.sent and not pending.again:
                del self._pending[ticket]
                self._refuse(pending.session, pending.rid, "lost", pending.name)
            pending.sent = False

    def link(self) -> None:
        """The table is complete: find the open lockspaces in it, or bring them back as they were.

        They are missing if the cluster has lost its state; or if they were released while this node was away, which
        it cannot tell from that.
        """
        opened = {name: space for session in self._home.sessions.values() for name, space in session.spaces.items()}
        for name, old in sorted(opened.items()):
            space = self._home.table.spaces.get(name)
            if space is not None:
                self._bound(name, space)
                continue
            old.shut = False
            made = (CREATE, old.uid, old.gid, old.permissions, old.value_limit, old.options)
            self._home.send(Kind.SPACE_CREATE, (name, 0, 0, *made))
        for ticket, pending in self._pending.items():
            self._send(ticket, pending)

    def _bound(self, name: str, space: Space | None) -> None:
        """Who had it open has this one open now, if it may."""
        for _, session in sorted(self._home.sessions.items()):
            if name not in session.spaces:
                continue
            if space is not None and space.permits(session.who.uid, session.who.gid):
                session.spaces[name] = space
                continue
            prefix = session.spaces.pop(name).prefix
            for handle in session.handles.under(prefix):
                self._drop(handle, "no_space" if space is None else "permission", name)

    # -- refusals

    @property
    def _me(self) -> int:
        return self._home.host.me.node

    def _refuse(self, session: int, rid: int, code: str, name: str) -> None:
        refusal = _refusal(code, name)
        more = {"rule": refusal.rule} if refusal.rule else {}
        self._home.host.refuse(session, rid, refusal.code, str(refusal), space=name, **more)


def _refusal(code: str, name: str) -> arguments.BadArgument:
    rule = _RULES.get(code, "")
    return arguments.BadArgument(_WORDS[code].format(name), rule, "no_space" if code == "not_open" else code)
