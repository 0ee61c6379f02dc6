"""What clients are told of their locks, and when (pitfalls K9, K10, D4, D8; locks.md A1).

What the table decides about a lock becomes an answer only when an answer may be given: not in a non-primary view
(K9), and a grant not before the horizon (K10). Until then the client still waits, so if this life ends the request
can be made again in the next one, and nobody has been promised anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dlm.advice import Advice
from dlm.handle import Handle
from dlm.lock import Step
from dlm.messages import split_key
from dlm.modes import DEMOTED, NAMES, NONE, NOTIFY, is_down
from dlm.names import Form
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
        self.deferred: list[Handle] = []  #: with an outcome that could not be told yet
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
            if self.may_tell(handle, effect):
                self.tell(handle, effect)
            else:
                handle.outcome = effect
                self.deferred.append(handle)

    def may_tell(self, handle: Handle, effect: Effect) -> bool:
        """Whether an outcome may be told now (K9, K10).

        Releases and refusals wait for no horizon. A grant is told only within a lease: a stale member of a ring
        that others have left may still deliver one, but it is worth nothing.
        """
        if not self._home.open or self._home.holding:
            return False
        if effect.what is not What.GRANTED:
            return True
        same = effect.mode == handle.mode or is_down(handle.mode, effect.mode)
        if handle.mode != NONE and same and not effect.flags & DEMOTED:
            return True
        if not self._home.lease.valid(self._home.now):
            return False
        if self._home.now >= self._home.lease.horizon:
            return True
        name = self._home.table.names.get(handle.key)
        if name is None or name.form is not Form.PRIVATE or name.owner != self._host.me.node:
            return False
        return name.epoch <= self._home.lease.settled  # the vanished node knew of this ownership

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
        if handle.unlock_rid:
            self._host.reply(handle.session, handle.unlock_rid, {})
        self._home.forget(handle)

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
        waiting, self.deferred = self.deferred, []
        for handle in waiting:
            effect = handle.outcome
            if effect is None or handle.ending:
                continue  # released, cancelled or ended meanwhile
            if handle.group is not None:
                handle.group.tell(self)
            elif self.may_tell(handle, effect):
                self.tell(handle, effect)
            else:
                self.deferred.append(handle)
        self.advise()

    def advise(self) -> None:
        """Tell holders whom they block, if that may be told now."""
        if self._home.open and not self._home.holding:
            self.advice.tell()

    def lose(self, handle: Handle, reason: str) -> None:
        """The lock has ended although nobody released it."""
        self._home.forget(handle)
        if handle.mode != NONE and not handle.ending:
            self.lost += 1
            self._host.push(handle.session, "dlm", "lost", {"h": handle.h, "reason": reason})
        if handle.request is not None:
            self._host.refuse(handle.session, handle.request.rid, "lost", f"the lock was lost: {reason}")
        self.answer_cancel(handle, False)
        if handle.unlock_rid:
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
    """The reply to a lock or convert request. ``value_read`` is false if the value block was not read.

    The handle is valid in this lease generation only, whatever the client finds in its page by now (D9).
    """
    return {
        "fence": effect.fence,
        "mode": effect.mode,
        "generation": generation,
        "value": effect.value or b"",
        "value_read": effect.value is not None,
        "value_valid": effect.valid,
        "flags": effect.flags,
    }
