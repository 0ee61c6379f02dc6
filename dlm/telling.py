"""What clients are told of their locks (pitfalls K9, K10, D4, D8; locks.md A1).

What the table decides about a lock becomes an answer only when an answer may be given (``dlm.withheld``). Until
then the client still waits, so if this life ends the request can be made again in the next one, and nobody has been
promised anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dlm import withheld
from dlm.advice import Advice
from dlm.backlog import Backlog
from dlm.handle import Handle
from dlm.lock import Step
from dlm.messages import split_key
from dlm.modes import DEMOTED, NAMES, NONE, NOTIFY
from dlm.resource import Effect, What

if TYPE_CHECKING:
    from dlm.home import Home

__all__ = ["Teller"]

_WORDS = {
    "again": "not available at once",
    "canceled": "the request was cancelled",
    "timeout": "not granted in time",
    "unknown": "no such lock",
    "busy": "an operation on this lock is in progress",
    "deadlock": "waiting for it would never end",
    "exists": "this handle number is in use",
    "no_space": "its lockspace has been released",
    "closing": "its lockspace is being released: no new locks",
}


class Teller:
    """Turns outcomes into answers and pushes, for one node's clients. A part of ``Home``."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._host = home.host
        self.advice = Advice(home.host)
        self.backlog = Backlog()  #: what could not be told yet
        self.lost = 0
        self._suspended = False  #: clients were told so, and not yet that it is over

    def outcome(self, effect: Effect) -> None:
        """One thing that the table has decided about a lock of this node."""
        _, session, h = effect.key
        if effect.was is not None:
            self._home.orphans.pop(effect.was[1:], None)  # adopted
        owner = self._home.sessions.get(session)
        handle = owner.handles.get(h) if owner else None
        if handle is None:
            return
        if handle.group is not None:
            handle.group.outcome(self, handle, effect)
        elif effect.what is What.BLOCKING:
            self.advice.note(handle, effect.mode)
        elif effect.what is What.GONE:
            self.gone(handle)
        elif effect.what is What.CANCEL_DONE:
            if not effect.mode:
                self.answer_cancel(handle, False)
        elif handle.request is not None and not handle.ending:
            handle.after = withheld.settles_after(self._home, handle, effect)
            self.tell_or_keep(handle, effect)

    def decided(self, handle: Handle, effect: Effect) -> None:
        """A new outcome: which position of the table must all members have before it is told?"""
        handle.after = withheld.settles_after(self._home, handle, effect)

    def tell_or_keep(self, handle: Handle, effect: Effect) -> None:
        """Tell an outcome now, or when it may be told."""
        if self.may_tell(handle, effect):
            self.tell(handle, effect)
        else:
            handle.outcome = effect
            self.keep(handle, effect)

    def may_tell(self, handle: Handle, effect: Effect) -> bool:
        """Whether an outcome may be told now."""
        return not withheld.reason(self._home, handle, effect)

    def keep(self, handle: Handle, effect: Effect) -> None:
        """It may not: look at it again when that can have changed."""
        why = withheld.reason(self._home, handle, effect)
        self.backlog.add(handle, why, self._home.now)
        if why in (withheld.STABLE, withheld.LEASE):
            self._host.hurry()

    def tell(self, handle: Handle, effect: Effect) -> None:
        """Answer the request of a handle."""
        request, handle.request, handle.outcome = handle.request, None, None
        assert request is not None
        self.advice.completed(handle)
        if effect.what is What.GRANTED:
            if not request.flags & NOTIFY:
                self.advice.forget(handle)  # from its place in the order on it does not want to be told (U8)
            self._host.reply(handle.session, request.rid, self._grant(handle, effect))
            return
        if handle.mode == NONE:
            self._home.forget(handle)
        more: dict[str, Any] = {}
        if effect.flags & DEMOTED:
            handle.mode = effect.mode  # the old mode was given up
            more = {"mode": effect.mode, "flags": effect.flags}
        if effect.what is What.CANCELED:
            code = effect.code or "canceled"
            self._host.refuse(handle.session, request.rid, code, _WORDS[code], **more)
            self.answer_cancel(handle, code == "canceled")
        else:
            if effect.cycle:
                more["cycle"] = [_waiting(step) for step in effect.cycle]
            word = _WORDS.get(effect.code, effect.code)
            self._host.refuse(handle.session, request.rid, effect.code, word, **more)
            if handle.mode == NONE:
                self.answer_cancel(handle, False)  # its own outcome will find no handle any more

    def tell_together(self, handles: Sequence[Handle]) -> None:
        """Answer the request for several handles, all of them granted: the first one's number counts."""
        session, rid, rows = handles[0].session, 0, []
        for handle in handles:
            request, effect, handle.request, handle.outcome = handle.request, handle.outcome, None, None
            assert request is not None
            assert effect is not None
            self.advice.completed(handle)
            rows.append({"h": handle.h, **self._grant(handle, effect)})
            rid = rid or request.rid
        self._host.reply(session, rid, {"locks": rows})

    def _grant(self, handle: Handle, effect: Effect) -> dict[str, Any]:
        handle.mode, handle.fence = effect.mode, effect.fence
        return _granted(effect, self._home.lease.generation)

    def give_up(self, handle: Handle) -> None:
        """Answer a request whose time is over; whoever calls this sees to the lock."""
        request, handle.request, handle.outcome = handle.request, None, None
        assert request is not None
        self._host.refuse(handle.session, request.rid, "timeout", _WORDS["timeout"])

    def gone(self, handle: Handle) -> None:
        """The lock is no more: whoever still waits for something about it is answered."""
        if handle.request is not None:
            self._host.refuse(handle.session, handle.request.rid, "canceled", "the lock was released")
        self.answer_cancel(handle, handle.request is not None)
        handle.request = handle.outcome = None
        self._released(handle)
        self._home.forget(handle)

    def _released(self, handle: Handle) -> None:
        """Answer the release. If it has written a value block, not before all members have that (C14)."""
        table, settled = self._home.table, self._home.settled
        wrote = handle.writes and table.history.last_write == table.applied
        if handle.unlock_rid and wrote and table.applied > settled.applied:
            self.backlog.wrote(table.applied, handle.session, handle.unlock_rid, self._home.now)
        elif handle.unlock_rid:
            self._host.reply(handle.session, handle.unlock_rid, {})

    def vanished(self, handle: Handle) -> None:
        """The lock has ended with its life while its release was on the way."""
        if handle.writes:
            self._unwritten(handle.session, handle.unlock_rid)
            handle.unlock_rid = 0
        self.gone(handle)

    def _unwritten(self, session: int, rid: int) -> None:
        text = "the lock is released, but whether its value block was written is not known"
        self._host.refuse(session, rid, "lost", text)

    def closed(self, handle: Handle) -> None:
        """The client has closed the lockspace of the lock: nobody waits for anything about it any more."""
        if handle.request is not None:
            self._host.refuse(handle.session, handle.request.rid, "canceled", "the lockspace was closed")
        self.answer_cancel(handle, handle.request is not None)
        if handle.unlock_rid:
            self._host.reply(handle.session, handle.unlock_rid, {})
        handle.request = handle.outcome = None

    def answer_cancel(self, handle: Handle, done: bool) -> None:
        """Whoever asked to cancel hears whether that withdrew something."""
        if handle.cancel_rid:
            self._host.reply(handle.session, handle.cancel_rid, {"canceled": done})
            handle.cancel_rid = 0

    def tell_deferred(self) -> None:
        """Give the answers that may be given by now, in their order."""
        self._tell_writes()
        self._tell_again(self.backlog.take_all())

    def tell_due(self) -> None:
        """The same after some time, or with a new lease: of those that wait for nothing else."""
        self._tell_again(self.backlog.take_soon())

    def tell_freed(self) -> None:
        """The same after a failure has got what it needed."""
        self._tell_again(self.backlog.take_failed())

    def tell_settled(self) -> None:
        """The same after all members have got more."""
        self._tell_writes()
        self._tell_again(self.backlog.take_settled(self._home.settled.applied))

    def _tell_writes(self) -> None:
        if self._home.open and not self._home.holding:
            for session, rid in self.backlog.take_writes(self._home.settled.applied):
                self._host.reply(session, rid, {})

    def _tell_again(self, waiting: Sequence[Handle]) -> None:
        for handle in waiting:
            effect = handle.outcome
            if effect is None or handle.ending:
                continue  # released, cancelled or ended meanwhile
            if handle.group is not None:
                handle.group.tell(self)
            else:
                self.tell_or_keep(handle, effect)
        self.advise()

    def drop_all(self) -> None:
        """The life has ended: nothing of what was decided will be told."""
        for session, rid in self.backlog.take_writes(None):
            self._unwritten(session, rid)
        self.backlog.clear()

    def advise(self) -> None:
        """Tell holders whom they block, if that may be told now."""
        if self._home.open and not self._home.holding:
            self.advice.tell(self._home.now)

    def lose(self, handle: Handle, reason: str) -> None:
        """The lock has ended although nobody released it."""
        self._home.forget(handle)
        if handle.mode != NONE and not handle.ending:
            self.lost += 1
            self._host.push(handle.session, "dlm", "lost", {"h": handle.h, "reason": reason})
        if handle.request is not None:
            self._host.refuse(handle.session, handle.request.rid, "lost", f"the lock was lost: {reason}")
        self.answer_cancel(handle, False)
        if handle.writes:
            self._unwritten(handle.session, handle.unlock_rid)
        elif handle.unlock_rid:
            self._host.reply(handle.session, handle.unlock_rid, {})
        handle.request = handle.outcome = None

    def suspended(self) -> None:
        """The primary view is gone."""
        self._suspended = True
        self._push_all("suspended")

    def resumed(self) -> None:
        """The primary view is back; clients who were told otherwise hear so."""
        if self._suspended:
            self._suspended = False
            self._push_all("resumed")

    def _push_all(self, kind: str) -> None:
        for session in sorted(self._home.sessions):
            if self._home.sessions[session].handles:
                self._host.push(session, "dlm", kind, {})


def _waiting(step: Step) -> dict[str, Any]:
    """A row of ``cycle`` in the refusal of a deadlock."""
    space, name = split_key(step.name)
    return {
        "name": name,
        "space": space,
        "node": step.key[0],
        "session": step.key[1],
        "pid": step.pid,
        "program": step.program,
        "mode": NAMES[step.mode] if step.mode != NONE else None,
        "asked": NAMES[step.asked],
    }


def _granted(effect: Effect, generation: int) -> dict[str, Any]:
    """The reply to a lock or convert request. ``value_read`` is false if the value block was not read;
    ``fences`` is how many numbers from ``fence`` on are the handle's own, if there are several.

    The handle is valid in this lease generation only, whatever the client finds in its page by now (D9).
    """
    told: dict[str, Any] = {
        "fence": effect.fence,
        "mode": effect.mode,
        "generation": generation,
        "value": effect.value or b"",
        "value_read": effect.value is not None,
        "value_valid": effect.valid,
        "flags": effect.flags,
    }
    if effect.fences > 1:
        told["fences"] = effect.fences
    return told
