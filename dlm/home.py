"""The home of local sessions: handles, requests, and the way of their operations into the table (pitfalls K12, D8).

A handle goes *asked -> told -> ending*. Where this node decides about a name alone, an operation is carried out at
once; everything else takes its place in the ordered stream. ``dlm.telling`` says what the clients hear of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dlm import multi, words, work
from dlm.agents import Agent
from dlm.clearing import Clearing
from dlm.crowd import Crowd
from dlm.failures import Begun, Freed
from dlm.gate import Gate
from dlm.handle import Handle, Request
from dlm.handles import Session
from dlm.lease import Lease
from dlm.messages import Kind
from dlm.modes import FORCEUNLOCK, IVVALBLK, NONE, NOQUEUE, ORPHAN, PERSISTENT, PW, TIMEOUT, VALBLK
from dlm.names import Form, Name
from dlm.outbox import Outbox
from dlm.resource import Effect, Lock, What
from dlm.settled import Settled
from dlm.spaces import Ask, Ended, Space, Told
from dlm.stonith import Stonith
from dlm.table import Composed, Effects, Look, Purge, Table
from dlm.telling import Teller
from dlm.timers import Timers
from dlm.waits import alone
from dlm.work import ITEM, Chores
from vsync.service import Host
from vsync.types import RingId

__all__ = ["Handle", "Home", "Request", "Session"]

END_BATCH = 128  #: locks in one END message
LOCKS_PER_NAME = 2000  #: of one node, waiting ones included: all of them must fit into one PUBLISH (A3)

class Home:
    """Everything this node knows about its own clients. Pure; called by the service only."""

    def __init__(self, host: Host, lease: Lease, agents: Mapping[int, Agent] | None = None) -> None:
        self.host = host
        self.lease = lease
        self.table = Table(host.me.node)
        self.settled = Settled()
        self.clearing = Clearing(self)
        self.stonith = Stonith(self, agents or {})
        self.outbox = Outbox()
        self.sessions: dict[int, Session] = {}
        self.now = 0
        self.linked = False  #: the life is admitted and the table complete: operations can be sent
        self.frozen = True  #: no primary view
        self.holding = False  #: between a transitional and the regular view
        self.queued_private: dict[bytes, None] = {}  #: private names with waiters (200 ms rule)
        self.idle_private: dict[bytes, int] = {}  #: private names without locks, since when, oldest first
        self.fast = 0  #: operations done without a message
        self.orphans: dict[tuple[int, int], tuple[bytes, int]] = {}  #: left by sessions: (name, process) (P1)
        self.timers = Timers()
        self.closings = Chores()  #: of sessions and lockspaces that are closed, lock by lock
        self.gate = Gate(self)
        self.teller = Teller(self)
        self._me = host.me.node
        self._on_name = Crowd()  #: all handles, also those of sessions that are being closed

    @property
    def open(self) -> bool:
        """Whether messages may leave and answers may be given."""
        return self.linked and not self.frozen

    def handles(self) -> Iterator[Handle]:
        """All handles, in a fixed order."""
        for session in sorted(self.sessions):
            yield from self.sessions[session].handles.values()

    def _busy(self) -> Iterator[Handle]:
        """At least those about which something is under way, in the same order."""
        return (handle for session in sorted(self.sessions) for handle in self.sessions[session].handles.busy())

    # -- requests --------------------------------------------------------------------------------------------

    def lock(self, handle: Handle) -> None:
        """A new handle with its request."""
        request = handle.request
        assert request is not None
        if request.flags & ORPHAN:
            self.closings.run()  # to find what a session has left a moment ago
        if not self.register((handle,)):
            return
        if self.frozen and (request.fails or request.flags & NOQUEUE):
            self.forget(handle)
            self.host.refuse(handle.session, request.rid, "no_quorum", "this node is not in a primary view")
            return
        name = self.own_now(handle.key)
        if name is None:
            self._ask(handle)
            self.timers.add(handle)
            return
        handle.sent = True
        who = self.sessions[handle.session].who
        key = (self._me, handle.session, handle.h)
        owner = handle.xid, handle.owner
        lock = Lock(key, request.mode, request.flags, request.value, who.pid, who.name, self.now, *owner)
        effects: list[Effect] = []
        assert name.resource is not None
        name.resource.lock(lock, effects)
        if name.resource.queued:
            effects += alone(self.table, name.resource, key)
        self.locally(handle.key, name, effects)
        self.timers.add(handle)

    def register(self, handles: Sequence[Handle]) -> bool:
        """Know new handles, which share a request. False, and the request is refused, if there are too many."""
        for handle in handles:
            if not self._on_name.room(handle, LOCKS_PER_NAME, self.handles):
                text = f"this node has {LOCKS_PER_NAME} locks on this name already"
                first = handles[0].request
                self.host.refuse(handle.session, first.rid if first else 0, "too_many", text)
                return False
        for handle in handles:
            self.sessions[handle.session].handles.add(handle)
            self._on_name.add(handle)
        return True

    def convert(self, handle: Handle, request: Request) -> None:
        """Another mode for a handle that is told and idle."""
        if self.frozen and request.flags & NOQUEUE:
            self.host.refuse(handle.session, request.rid, "no_quorum", "this node is not in a primary view")
            return
        words.given(self, handle)
        handle.request = request
        handle.persistent = handle.persistent or bool(request.flags & PERSISTENT)
        name = self.own_now(handle.key)
        if name is None or name.resource is None:
            self.operate(Kind.CONVERT, handle, request.mode, request.flags, request.value)
            self.timers.add(handle)
            return
        effects: list[Effect] = []
        key = (self._me, handle.session, handle.h)
        name.resource.convert(key, request.mode, request.flags, request.value, self.now, effects)
        if name.resource.converting:
            effects += alone(self.table, name.resource, key)
        self.locally(handle.key, name, effects)
        self.timers.add(handle)

    def unlock(self, handle: Handle, rid: int, flags: int, value: bytes | None) -> None:
        """End a handle, whatever it does. For the caller it has ended already (D8)."""
        if handle.group is not None:
            handle.group.withdraw(self, handle, rid)
            return
        handle.unlock_rid, handle.ending = rid, True
        handle.writes = handle.mode >= PW and bool(flags & IVVALBLK or (flags & VALBLK and value is not None))
        if not handle.sent:
            self.teller.gone(handle)
            return
        name = self.own_now(handle.key)
        if name is not None and name.resource is not None:
            effects: list[Effect] = []
            name.resource.unlock((self._me, handle.session, handle.h), flags | FORCEUNLOCK, value, effects)
            self.locally(handle.key, name, effects)
            return
        self.operate(Kind.UNLOCK, handle, 0, flags | FORCEUNLOCK, value)
        if self.frozen and not handle.writes:
            self.host.reply(handle.session, rid, {})  # it leaves in the next primary view
            handle.unlock_rid = 0

    def cancel(self, handle: Handle, rid: int) -> None:
        """Withdraw the operation in progress; what was granted already stays, unless nobody was told (D4)."""
        handle = handle.group.lead if handle.group is not None else handle
        request, outcome = handle.request, handle.outcome
        if request is None or handle.ending:
            self.host.reply(handle.session, rid, {"canceled": False})
        elif request.kind is Kind.LOCK and (not handle.sent or (outcome and outcome.what is What.GRANTED)):
            self.host.reply(handle.session, rid, {"canceled": True})
            self.unlock(handle, 0, 0, None)
        elif outcome is not None or handle.cancel_rid:
            self.host.reply(handle.session, rid, {"canceled": False})
        else:
            handle.cancel_rid = rid
            self._withdraw(handle, 0)

    def _withdraw(self, handle: Handle, flags: int) -> None:
        """Cancel the operation in progress, here or in the order; with TIMEOUT because its time is over."""
        if handle.group is not None:
            handle.group.cancel(self, flags)
            return
        name = self.own_now(handle.key)
        if name is None or name.resource is None:
            self.operate(Kind.CANCEL, handle, 0, flags, None)
            return
        effects: list[Effect] = []
        key = (self._me, handle.session, handle.h)
        done = name.resource.cancel(key, effects, flags)
        effects.append(Effect(What.CANCEL_DONE, key, mode=int(done)))
        self.locally(handle.key, name, effects)

    def time_out(self, handle: Handle) -> None:
        """The time of a request is over: cancel it, and let the order say whether the grant came first (U3, S69).

        A lock request of which nobody has been told anything can be answered without knowing that: nothing of it
        is sent, or nothing can be ordered now, or its grant cannot be told yet. Whatever it gets meanwhile is
        given back. A conversion is answered when the order has decided which mode there is.
        """
        request, outcome = handle.request, handle.outcome
        if request is None or handle.ending:
            return
        request.timed_out = True
        granted = outcome is not None and outcome.what is What.GRANTED
        if request.kind is Kind.LOCK and (not handle.sent or self.frozen or granted):
            self.teller.give_up(handle)
            self.unlock(handle, 0, 0, None)
        elif outcome is None and not handle.cancel_rid:
            self._withdraw(handle, TIMEOUT)

    def run_timers(self) -> None:
        """Give up some of what has waited long enough; the next turn goes on."""
        for handle in self.timers.due(self.now, work.TURN // ITEM):
            self.time_out(handle)

    def close(self, session: int) -> None:
        """A client has gone: its locks go, here where this node decides alone, else by messages (P1)."""
        gone = self.sessions.pop(session, None)
        self.clearing.close(session)
        if gone is not None and gone.handles:
            self._close(self._abandon(session, gone.who.pid, gone.handles.values(), len(gone.handles)))

    def close_space(self, session: int, space: Space, rid: int) -> None:
        """A client is done with a lockspace: its locks there go as if it had gone; then it is answered."""
        owner = self.sessions[session]
        handles = list(owner.handles.under(space.prefix))
        for handle in handles:
            if handle.group is not None:
                handle.group.dissolve()
            owner.handles.pop(handle.h)
            self.teller.closed(handle)
        self._close(self._abandon(session, owner.who.pid, handles, len(handles), rid))

    def _close(self, job: Iterator[int]) -> None:
        """Few locks go at once, as nobody will look for them afterwards; of many the rest follows turn by turn."""
        self.closings.add(job)
        self.closings.run(work.TURN)

    def _abandon(self, session: int, pid: int, handles: Iterable[Handle], left: int, rid: int = 0) -> Iterator[int]:
        """A job: what these handles are for goes. What has been decided for them meanwhile is told to nobody."""
        life, rest = self.outbox.ring, list[tuple[bytes, int]]()
        for handle in handles:
            left -= 1
            self._on_name.remove(handle)
            handle.outcome = None
            self.teller.advice.forget(handle)
            if self.outbox.ring == life and handle.sent and not handle.ending:  # else nothing is left of it
                if handle.persistent:
                    self.orphans[session, handle.h] = handle.key, pid
                if not self._let_go(handle):
                    rest.append((handle.key, handle.h))
            if len(rest) == END_BATCH or not left:
                if rest and self.outbox.ring == life:
                    self.send(Kind.END, (session, tuple(rest)), sorted({key for key, _ in rest}))
                rest.clear()
            yield ITEM
        if rid:
            self.host.reply(session, rid, {})

    def _let_go(self, handle: Handle) -> bool:
        """Whether this node decides alone, and has."""
        name = self.own_now(handle.key)
        if name is None or name.resource is None:
            return False
        effects: list[Effect] = []
        name.resource.abandon((self._me, handle.session, handle.h), effects)
        self.locally(handle.key, name, effects)
        return True

    def drop(self, handles: Iterable[Handle], reason: str) -> None:
        """These locks end although their client did not ask for each; it is told."""
        for handle in handles:
            if handle.mode != NONE:
                self.host.push(handle.session, "dlm", "lost", {"h": handle.h, "reason": reason})
            self.unlock(handle, 0, IVVALBLK, None)

    def purge(self, pid: int) -> int:
        """The orphans of a process of this node go, with 0 those of all (P4). Returns how many were left here."""
        self.closings.run()
        due = [(who, key) for who, (key, of) in sorted(self.orphans.items()) if pid in (0, of)]
        for (session, h), key in due:
            del self.orphans[session, h]
            name = self.own_now(key)
            if name is not None and name.resource is not None:
                effects: list[Effect] = []
                name.resource.unlock((self._me, session, h), FORCEUNLOCK | IVVALBLK, None, effects)
                self.locally(key, name, effects)
            else:
                self.send(Kind.UNLOCK, (key, session, h, 0, FORCEUNLOCK | IVVALBLK, None), (key,))
        return len(due)

    # -- the way into the ordered stream ---------------------------------------------------------------------

    def send(self, kind: Kind, body: tuple[Any, ...], keys: Iterable[bytes] = ()) -> None:
        """Give a message to the outbox, and to the ring if messages may leave."""
        if not self.linked:
            return  # nothing of this node is in any table: there is nothing to tell
        self.outbox.add(kind, body, keys)
        self.flush()

    def flush(self) -> None:
        """Submit what waits, if there is a primary view."""
        if self.open:
            self.outbox.flush(self.host.submit)

    def _ask(self, handle: Handle) -> None:
        """Send the lock request of a handle, or keep it until the node is linked."""
        request = handle.request
        if handle.group is not None:
            if self.linked:
                handle.group.ask(self)
        elif self.linked and request is not None:
            handle.sent = True
            self.operate(Kind.LOCK, handle, request.mode, request.flags, request.value)

    def operate(self, kind: Kind, handle: Handle, mode: int, flags: int, value: bytes | None) -> None:
        """Send an operation on the lock of a handle."""
        session = self.sessions.get(handle.session)
        who = (session.who.pid, session.who.name, handle.xid, handle.owner) if session and kind is Kind.LOCK else ()
        self.send(kind, (handle.key, handle.session, handle.h, mode, flags, value, *who), (handle.key,))

    # -- the owner's fast path -------------------------------------------------------------------------------

    def own_now(self, key: bytes) -> Name | None:
        """The name, if this node may decide about it alone at this moment (K12).

        Private to this node, within its lease, no own message about the name under way, and more fence
        numbers left than one event can need.
        """
        name = self.table.names.get(key)
        if name is None or name.form is not Form.PRIVATE:
            return None
        if name.folded is not None:
            self.table.local(key)
        if name.resource is None or name.fences is None:
            return None
        if self.frozen or self.holding or key in self.outbox.under_way or not self.lease.valid(self.now):
            return None
        return name if name.fences.left > name.resource.queued + 1 else None

    def all_own(self, keys: Iterable[bytes]) -> bool:
        """Whether this node may decide about all these names alone at this moment."""
        return all(self.own_now(key) is not None for key in keys)

    def locally(self, key: bytes, name: Name, effects: list[Effect]) -> None:
        """An operation on an own private name was carried out: the answers."""
        if name.resource is not None and name.resource.grouped:
            self.done_locally((key,), list(effects))
            return
        self.fast += 1
        for effect in effects:
            self.teller.outcome(effect)
        self.teller.advise()
        self.look_after(key, name)

    def done_locally(self, keys: Iterable[bytes], out: Effects) -> None:
        """An operation on own private names was carried out: what multi-locks make of it, and the answers."""
        self.fast += 1
        for key in keys:
            multi.settle(self.table, key, out)
        self.table.sweep(out)
        out.extend(Look(key, give_up=False) for key in keys)
        self.outcomes(out)

    def look_after(self, key: bytes, name: Name) -> None:
        """After an operation on an own private name: note waiters, idleness, and the need for numbers."""
        resource, fences = name.resource, name.fences
        if resource is None or fences is None:
            return
        if resource.queued:
            self.queued_private[key] = None
        elif not resource.locks:
            self.idle_private.pop(key, None)
            self.idle_private[key] = self.now  # at the end: oldest first
        lately = self.table.lately
        if lately.last != key:
            lately.used(key)
        if fences.low and not fences.asked:
            fences.asked = True
            self.send(Kind.REFILL, (key, name.epoch))  # K12 does not mind it: it changes no lock

    # -- outcomes --------------------------------------------------------------------------------------------

    def outcomes(self, effects: Effects) -> None:
        """What the table has decided, in its order."""
        for effect in effects:
            if isinstance(effect, Composed):
                self.send(Kind.PUBLISH, (effect.key, effect.epoch, effect.contents), (effect.key,))
            elif isinstance(effect, Purge):
                if effect.node == self._me:
                    self.purge(effect.pid)
            elif isinstance(effect, Look):
                self._look(effect)
            elif isinstance(effect, Told | Ask | Ended):
                self.gate.outcome(effect)
            elif isinstance(effect, Begun | Freed):
                self.clearing.outcome(effect)
            elif effect.key[0] == self._me:
                self.teller.outcome(effect)
        self.teller.advise()

    def _look(self, look: Look) -> None:
        """A multi-lock has changed an own private name, or needs it to be shared."""
        name = self.table.names.get(look.key)
        if name is None or name.form is not Form.PRIVATE or name.owner != self._me:
            return
        if look.give_up:
            self.send(Kind.YIELD, (look.key, name.epoch), (look.key,))
        else:
            self.look_after(look.key, name)

    def forget(self, handle: Handle) -> None:
        """The handle has ended, and all that wait together with it."""
        for each in handle.group.dissolve() if handle.group is not None else (handle,):
            self.teller.advice.forget(each)
            self.teller.backlog.forget(each)
            session = self.sessions.get(each.session)
            if session is not None and session.handles.pop(each.h):
                self._on_name.remove(each)

    # -- views -----------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """A non-primary view: callers who prefer an error get it, all hear that handles are suspended."""
        if self.frozen:
            return
        self.frozen = True
        self.stonith.frozen()
        for handle in self._busy():
            request = handle.request
            if handle.ending and handle.unlock_rid and not handle.writes:
                self.host.reply(handle.session, handle.unlock_rid, {})  # as those that begin from now on
                handle.unlock_rid = 0
            if request is None or request.kind is not Kind.LOCK or handle.ending:
                continue
            if request.timed_out:
                self.teller.give_up(handle)  # its cancel cannot be ordered now
            elif request.fails:
                self.host.refuse(handle.session, request.rid, "no_quorum", "the primary view is gone")
                handle.request = handle.outcome = None
            else:
                continue
            self.unlock(handle, 0, 0, None)
        self.teller.suspended()

    def resume(self) -> None:
        """A primary view in which this life goes on: send again what was not applied."""
        self.frozen = False
        self.outbox.rewind()
        self.flush()
        self.teller.resumed()

    def new_life(self, ring: RingId, table: Table, reason: str) -> None:
        """The former life has ended: what was held is lost, what waits will be asked for again (C12)."""
        self.lease.new_generation()
        self.table = table
        self.outbox.begin(ring)
        self.linked = False
        self.teller.drop_all()
        self.clearing.new_life()
        self.stonith.new_life()
        self.orphans.clear()  # they have gone with the life (P2)
        self.teller.advice.clear()
        self.queued_private.clear()
        self.idle_private.clear()
        self.gate.new_life()
        for handle in self.handles():
            handle.outcome = None
            if handle.ending or (handle.cancel_rid and handle.mode == NONE):
                self.teller.vanished(handle)
            elif handle.mode != NONE:
                self.teller.lose(handle, reason)
            elif handle.request is not None and handle.request.timed_out:
                self.teller.give_up(handle)
                self.forget(handle)
            else:
                handle.sent = False

    def link(self) -> None:
        """The life is admitted and the table complete: send the requests that wait."""
        self.linked = True
        self.gate.link()
        for handle in self._busy():
            if not handle.sent:
                self._ask(handle)
        self.teller.resumed()

    def lose_all(self, reason: str) -> None:
        """End every handle and every request, on purpose: the node is leaving."""
        self.stonith.leaving()
        self.closings.clear()  # the life ends
        self.lease.new_generation()
        for handle in self.handles():
            self.teller.lose(handle, reason)
