"""The handles of a multi-lock on their way: asked for, withdrawn and answered as one (pitfalls F2–F4).

Only the first handle's request has a number that the client waits for; the others' have none (0), so whatever is
told of them is told to nobody. When the request is answered the group is over, and its handles are ordinary ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dlm import multi
from dlm.handle import Handle
from dlm.lock import Effect, Lock, What
from dlm.messages import Kind
from dlm.modes import FORCEUNLOCK, IVVALBLK, NOQUEUE, PW
from dlm.portions import by_size

if TYPE_CHECKING:
    from dlm.home import Home
    from dlm.table import Effects
    from dlm.telling import Teller

__all__ = ["MAX_BATCH", "Group", "lock_all", "unlock_all", "weight"]

MAX_BATCH = 128  #: names in one multi-lock
UNIT = 128  #: bytes of names that weigh as much as one lock


def weight(keys: Iterable[bytes]) -> int:
    """How many locks a part of a multi-lock counts for: each part carries the names of all (A3)."""
    return 1 + sum(len(key) for key in keys) // UNIT


class Group:
    """The handles of one multi-lock, in the order of their names, until it is answered."""

    __slots__ = ("handles", "keys")

    def __init__(self, handles: Sequence[Handle]) -> None:
        self.handles = list(handles)
        self.keys = tuple(handle.key for handle in handles)
        for handle in handles:
            handle.group = self

    @property
    def lead(self) -> Handle:
        """The one whose request is answered."""
        return self.handles[0]

    def dissolve(self) -> list[Handle]:
        """The group is over; its handles go on by themselves, or end."""
        for handle in self.handles:
            handle.group = None
        return self.handles

    # -- the way into the table ------------------------------------------------------------------------------

    def ask(self, home: Home) -> None:
        """Send the request, as one message."""
        lead, asked = self.lead, []
        for handle in self.handles:
            assert handle.request is not None
            handle.sent = True
            asked.append((handle.key, handle.request.mode, handle.request.flags))
        who = home.sessions[lead.session].who
        whose = who.pid, who.name, lead.xid, lead.owner
        home.send(Kind.LOCK_ALL, (lead.session, lead.h, tuple(asked), *whose), self.keys)

    def enter(self, home: Home) -> None:
        """All names are this node's own: carry the request out without a message."""
        me, lead = home.host.me.node, self.lead
        who = home.sessions[lead.session].who
        entering: list[multi.Part] = []
        for handle in self.handles:
            request, resource = handle.request, home.table.local(handle.key)
            assert request is not None
            assert resource is not None
            handle.sent = True
            key = me, handle.session, handle.h
            whose = who.pid, who.name, home.now, lead.xid, lead.owner
            lock = Lock(key, request.mode, request.flags, None, *whose)
            lock.batch = self.keys
            entering.append((handle.key, resource, lock))
        out: Effects = []
        multi.enter(home.table, entering, out)
        home.done_locally(self.keys, out)

    def cancel(self, home: Home, flags: int) -> None:
        """Withdraw the request, here or in the order: all of it, or nothing if the grant came first (U3)."""
        lead = self.lead
        if not home.all_own(self.keys):
            locks = tuple((handle.key, handle.h) for handle in self.handles)
            home.send(Kind.CANCEL_ALL, (lead.session, flags, locks), self.keys)
            return
        effects: list[Effect] = []
        for handle in self.handles:
            resource = home.table.local(handle.key)
            assert resource is not None
            key = home.host.me.node, handle.session, handle.h
            done = resource.cancel(key, effects, flags)
            effects.append(Effect(What.CANCEL_DONE, key, mode=int(done)))
        home.done_locally(self.keys, list(effects))

    def withdraw(self, home: Home, asked: Handle, rid: int) -> None:
        """One of the handles ends, and so all of them do, granted or not: nobody has been told."""
        if not self.lead.sent:
            asked.unlock_rid = rid
            self._gone(home.teller)
        else:
            unlock_all(home, asked.session, rid, [(handle, 0, None) for handle in self.dissolve()])

    # -- answers ---------------------------------------------------------------------------------------------

    def outcome(self, teller: Teller, handle: Handle, effect: Effect) -> None:
        """What the table has decided about one of the parts."""
        if effect.what is What.GRANTED:
            handle.outcome = effect
            teller.decided(handle, effect)
            if all(each.outcome is not None for each in self.handles):
                self.tell(teller)
        elif effect.what is What.CANCEL_DONE:
            if not effect.mode:
                teller.answer_cancel(self.lead, False)
        elif effect.what is What.BLOCKING:
            teller.advice.note(handle, effect.mode)
        elif effect.what is What.GONE:
            self._gone(teller)
        elif self.lead.outcome is None:  # what is decided of one part is decided of all
            self.lead.outcome = effect
            self.tell(teller)

    def tell(self, teller: Teller) -> None:
        """It is decided: one answer, now or when it may be given."""
        told = [(handle, handle.outcome) for handle in self.handles if handle.outcome is not None]
        early = next((each for each in told if not teller.may_tell(*each)), None)
        if early is not None:
            teller.keep(*early)
            return
        lead, *others = self.dissolve()
        if lead.outcome is None or lead.outcome.what is What.GRANTED:
            teller.tell_together([lead, *others])
            return
        teller.tell(lead, lead.outcome)
        for other in others:
            teller.gone(other)

    def _gone(self, teller: Teller) -> None:
        for handle in self.dissolve():
            teller.gone(handle)


# -- requests ------------------------------------------------------------------------------------------------


def lock_all(home: Home, handles: Sequence[Handle]) -> None:
    """New handles, in the order of their names, with one request."""
    group = Group(handles)
    lead = group.lead
    request = lead.request
    assert request is not None
    if home.frozen and (request.fails or request.flags & NOQUEUE):
        home.host.refuse(lead.session, request.rid, "no_quorum", "this node is not in a primary view")
        return
    if not home.register(handles):
        return
    if home.all_own(group.keys):
        group.enter(home)
    elif home.linked:
        group.ask(home)
    home.timers.add(lead)


def unlock_all(home: Home, session: int, rid: int, asked: Iterable[tuple[Handle, int, bytes | None]]) -> None:
    """End these handles of one session. What this node does not decide alone goes in one message."""
    rest: list[tuple[bytes, int, int, bytes | None]] = []
    last: Handle | None = None
    writes = False
    for handle, flags, value in _whole(asked):
        handle.ending, handle.writes = True, handle.mode >= PW and bool(flags & IVVALBLK or value is not None)
        resource = home.table.local(handle.key) if home.all_own((handle.key,)) else None
        if not handle.sent:
            home.teller.gone(handle)
        elif resource is not None:
            effects: list[Effect] = []
            key = home.host.me.node, handle.session, handle.h
            resource.unlock(key, flags | FORCEUNLOCK, value, effects)
            home.done_locally((handle.key,), list(effects))
        else:
            rest.append((handle.key, handle.h, flags | FORCEUNLOCK, value))
            last = handle
        writes = writes or handle.writes
    if last is not None:
        last.unlock_rid, last.writes = rid, writes
    for rows in by_size(rest, lambda row: len(row[3] or b"")):
        home.send(Kind.UNLOCK_ALL, (session, tuple(rows)), [key for key, *_ in rows])
    if last is None or (home.frozen and not writes):
        home.host.reply(session, rid, {})  # it leaves in the next primary view
    if last is not None and home.frozen and not writes:
        last.unlock_rid = 0


def _whole(
    asked: Iterable[tuple[Handle, int, bytes | None]],
) -> Iterable[tuple[Handle, int, bytes | None]]:
    """The same, with all that wait together with one of them."""
    for handle, flags, value in list(asked):
        if handle.group is not None:
            yield from ((each, 0, None) for each in handle.group.dissolve())
        elif not handle.ending:
            yield handle, flags, value
