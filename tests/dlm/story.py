"""Histories of locks made by hand, for the tests of the checkers."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from dlm.testing.calls import History, Note, Result, Verb, What, read
from dlm.testing.linear import Verdict, judge
from dlm.testing.register import judge_registers

__all__ = ["LEASE", "Story"]

LEASE = 1000


class Story:
    """Clients a, b, c write notes; every method adds those of one operation. Times in µs; fences as given."""

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.as_told = False  #: a client's notes are in the order of the calls here, not in that of their times
        self._ops: dict[str, int] = defaultdict(int)
        self._handles: dict[str, int] = defaultdict(int)

    # -- whole operations

    def lock(
        self, client: str, called: int, returned: int, fence: int, mode: str = "EX", name: str = "n",
        node: str = "a", deadline: int | None = None, **answer: Any,
    ) -> int:  # fmt: skip
        """A granted request; returns its handle."""
        handle = self._next(self._handles, client)
        op = self.call(client, called, Verb.ACQUIRE, handle=handle, name=name, mode=mode, node=node, patient=True)
        until = returned + LEASE if deadline is None else deadline
        given = {"mode": mode, "fence": fence, "deadline": until, **answer}
        self.answer(client, op, returned, Result.OK, **given)
        return handle

    def ask(
        self, client: str, called: int, returned: int | None, result: Result = Result.NO, mode: str = "EX",
        name: str = "n", reason: str = "timeout", patient: bool = True,
    ) -> int:  # fmt: skip
        """A request that is not granted, or not answered."""
        handle = self._next(self._handles, client)
        op = self.call(client, called, Verb.ACQUIRE, handle=handle, name=name, mode=mode, patient=patient)
        if returned is not None:
            self.answer(client, op, returned, result, reason=reason)
        return handle

    def release(
        self, client: str, handle: int, called: int, returned: int | None = None, result: Result = Result.OK
    ) -> int:
        """Give it back. Returns the operation's number."""
        op = self.call(client, called, Verb.RELEASE, handle=handle)
        self.answer(client, op, called if returned is None else returned, result)
        return op

    def convert(
        self, client: str, handle: int, mode: str, called: int, returned: int | None, fence: int = 0,
        result: Result = Result.OK,
    ) -> int:  # fmt: skip
        """Change the mode."""
        op = self.call(client, called, Verb.CONVERT, handle=handle, mode=mode, patient=True)
        if returned is not None:
            self.answer(client, op, returned, result, mode=mode if result is Result.OK else "", fence=fence)
        return op

    def held(
        self, client: str, start: int, end: int, fence: int, mode: str = "EX", name: str = "n",
        asked: int | None = None,
    ) -> int:  # fmt: skip
        """Locked and released."""
        handle = self.lock(client, start - 1 if asked is None else asked, start, fence, mode, name)
        self.release(client, handle, end)
        return handle

    def seen(self, client: str, handle: int, t: int, deadline: int) -> None:
        """It was checked and is valid."""
        self.note(client, What.SEEN, t, handle=handle, deadline=deadline)

    def lost(self, client: str, handle: int, t: int, reason: str = "evicted", deadline: int = 0) -> None:
        """It was noticed to be lost."""
        self.note(client, What.LOST, t, handle=handle, reason=reason, deadline=deadline)

    def died(self, client: str, t: int) -> None:
        """It was killed."""
        self.note(client, What.DIED, t)

    def calm(self, start: int, end: int) -> None:
        """Nothing is done to the cluster in this time."""
        self.note("nemesis", What.CALM, start)
        self.note("nemesis", What.TROUBLE, end)

    def use(
        self, client: str, handle: int, verb: Verb, called: int, returned: int | None, fence: int, value: int = 0,
        result: Result = Result.OK, name: str = "n",
    ) -> int:  # fmt: skip
        """An operation on the register."""
        given = value if verb is Verb.WRITE else 0
        op = self.call(client, called, verb, handle=handle, name=name, fence=fence, value=given)
        if returned is not None:
            self.answer(client, op, returned, result, value=0 if verb is Verb.WRITE else value)
        return op

    # -- single notes

    def call(self, client: str, t: int, verb: Verb, **fields: Any) -> int:
        """An invocation; returns the operation's number."""
        op = self._next(self._ops, client)
        self.note(client, What.CALL, t, op=op, verb=verb, **fields)
        return op

    def answer(self, client: str, op: int, t: int, result: Result, **fields: Any) -> None:
        """A response."""
        self.note(client, What.RETURN, t, op=op, result=result, **fields)

    def note(self, client: str, what: What, t: int, **fields: Any) -> None:
        """Anything."""
        self.notes.append(Note(t, client, what, **fields))

    # -- judging

    def history(self) -> History:
        """Sorted by client, as the files are read."""
        return read(sorted(self.notes, key=lambda note: (note.client, 0 if self.as_told else note.t)))

    def verdict(self, bound: int = 0, final: dict[str, int] | None = None) -> Verdict:
        """Of locks and registers."""
        history = self.history()
        verdict = judge(history, bound)
        verdict.problems += judge_registers(history, verdict.stretches, final)
        return verdict

    def rules(self, bound: int = 0, final: dict[str, int] | None = None) -> list[str]:
        """Those that are broken, each once."""
        return sorted({problem.rule for problem in self.verdict(bound, final).problems})

    @staticmethod
    def _next(counter: dict[str, int], client: str) -> int:
        counter[client] += 1
        return counter[client]
