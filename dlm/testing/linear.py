"""A linearizability checker for locks: was there one order of all grants that explains what every client saw?

The specification is one lock per name: a grant is possible when no other handle has a mode that excludes it,
and its fence is larger than all before (K14, F1, F2). A history is good if every operation can be given one
instant between its call and its answer such that the specification allows them in that order. A handle counts
from its answer until release, or a conversion that takes something away, is *called* (D8), or until its loss is
known or its lease has run out, as far as its client could know; nobody but the clients is asked.

For locks no search is needed. Fences rise from grant to grant, so they *are* the order, and giving each grant the
earliest instant that it can have decides: it is after the call, after the instant of the grant before, and after
the end of every earlier hold that excludes it. An end has no other bound than its call, so it may always come as
early as that; and as an earlier instant of one grant never makes that of a later one later, no other choice can
succeed where this one fails. A grant whose earliest instant is after its answer has none. ``wgl`` finds the same
with a search (tests/dlm/test_linear_random.py), which takes longer.

===============  ============================================================================================
``invocation``   nothing is answered, granted or noticed that nobody asked for; modes and names are those asked for
``once``         every operation is answered once
``answer``       and every one is, unless its client was killed
``sequence``     a client's own operations make sense: nothing on a lock that was not granted or was released
``time``         a client's clock does not go backwards
``end``          every grant ends: released, reported lost, or its client was killed
``revived``      a lock that was lost for good is not held again by the same grant
``exclusion``    no two valid handles of modes that exclude each other at the same instant
``fence``        every grant, and every conversion that is not downwards, has a fence of its own, larger than the
                 handle's last; other conversions keep it
``order``        there is an instant for every grant, in the order of the fences
``progress``     in calm times nobody waits longer than ``bound`` for a name that nobody else has to do with
===============  ============================================================================================
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from dlm.held import both
from dlm.info import Mode
from dlm.modes import COMPATIBLE, NAMES
from dlm.testing.calls import BUSY, PASSING, Handle, History, Note, Op, Problem, Result, Verb, What, read

__all__ = ["Grant", "Stretch", "Verdict", "grants_of", "judge", "judge_notes", "order_problems"]

NL = int(Mode.NL)


@dataclass(frozen=True, slots=True)
class Stretch:
    """From ``start`` to before ``end`` the client relied on one mode of a handle."""

    mode: int
    start: int
    end: int
    fence: int
    op: Op  #: that began it

    def __str__(self) -> str:
        who = f"{self.op.client} op {self.op.number} at node {self.op.node}"
        what = f"{NAMES[self.mode]} fence {fence_text(self.fence)}"
        return f"{who}: {what} from {_time(self.start)} to {_time(self.end)}"


@dataclass(slots=True)
class Grant:
    """A grant or a conversion that is not downwards: it happened at an instant from ``op.called`` to
    ``op.returned``. ``ends``: from when on which smaller mode was left of it, the last one being NL – unless
    another conversion follows, which then is ``next``.
    """

    op: Op
    mode: int
    fence: int
    ends: list[tuple[int, int]] = field(default_factory=list)
    next: Grant | None = None

    def free_for(self, mode: int) -> int | None:
        """From when on it does not exclude ``mode``; ``None``: not before ``next``."""
        if COMPATIBLE[self.mode][mode]:
            return 0
        return next((t for t, left in self.ends if COMPATIBLE[left][mode]), None)

    def __str__(self) -> str:
        return f"{self.op}: {NAMES[self.mode]} with fence {fence_text(self.fence)}"


@dataclass(slots=True)
class Verdict:
    """What was found. ``good`` if no rule is broken; the numbers are for people."""

    problems: list[Problem] = field(default_factory=list)
    stretches: dict[tuple[str, int], list[Stretch]] = field(default_factory=dict)  #: by client and handle
    grants: int = 0
    conversions: int = 0
    refused: int = 0
    lost: int = 0
    unknown: int = 0

    @property
    def good(self) -> bool:
        """Whether no rule is broken."""
        return not self.problems

    def report(self, limit: int = 20) -> str:
        """The problems as lines, the first ``limit`` of them."""
        lines = [str(problem) for problem in self.problems[:limit]]
        if len(self.problems) > limit:
            lines.append(f"... and {len(self.problems) - limit} more")
        return "\n".join(lines)


def judge_notes(notes: Iterable[Note], bound_us: int = 0) -> Verdict:
    """``judge`` what the notes say."""
    return judge(read(notes), bound_us)


def judge(history: History, bound_us: int = 0) -> Verdict:
    """Judge all locks of a history. ``bound_us``: how long a wait for nobody may last in calm times; 0: for ever.
    """
    verdict = Verdict(list(history.problems))
    names: dict[str, list[_Life]] = defaultdict(list)
    for handle in history.handles:
        life = _Life(verdict, history, handle)
        names[handle.acquire.name].append(life)
        verdict.stretches[handle.acquire.client, handle.acquire.handle] = life.stretches
        _count(verdict, life)
    for name in sorted(names):
        lives = names[name]
        _check_exclusion(verdict, name, [stretch for life in lives for stretch in life.stretches])
        grants = [grant for life in lives for grant in life.grants]
        _check_fences(verdict, name, grants)
        verdict.problems += order_problems(name, grants)
        if bound_us:
            _Waits(verdict, history, lives, bound_us).check()
    return verdict


def grants_of(history: History, name: str) -> list[Grant]:
    """All grants of a name, for those who want to judge their order by other means."""
    lives = [_Life(Verdict(), history, each) for each in history.handles if each.acquire.name == name]
    return [grant for life in lives for grant in life.grants]


def _count(verdict: Verdict, life: _Life) -> None:
    acquire = life.handle.acquire
    verdict.grants += acquire.result is Result.OK
    verdict.refused += acquire.result is Result.NO
    verdict.unknown += acquire.result is Result.UNKNOWN
    verdict.conversions += sum(each.result is Result.OK for each in life.handle.converts)
    release = life.handle.release
    verdict.lost += life.lost is not None or (release is not None and release.result is Result.NO)


# -- one handle --------------------------------------------------------------------------------------------------


class _Life:
    """Reads what became of one handle: what its client relied on, and when; and what the lock must have done."""

    def __init__(self, verdict: Verdict, history: History, handle: Handle) -> None:
        self.handle = handle
        self.stretches: list[Stretch] = []
        self.grants: list[Grant] = []
        self.lost: Note | None = None  #: the first notice of a loss that did not pass
        self.over = history.end  #: when it was certainly nobody's any more
        self._verdict = verdict
        self._history = history
        self._seen = self._deadline = 0
        self._fence_known = True
        self._mode = NL
        acquire = handle.acquire
        if acquire.result is Result.OK and acquire.returned is not None:
            self._granted(acquire, acquire.returned)
        elif acquire.returned is not None:
            self.over = acquire.returned
        else:
            self.over = history.deaths.get(acquire.client, history.end)

    def _granted(self, acquire: Op, at: int) -> None:
        self._mode = _number(acquire.mode)
        # A client may stand still between its grant and its note of it: then the lease may be over already.
        self._seen, self._deadline = min(at, acquire.deadline), acquire.deadline
        self._require_fence(acquire)
        self.grants.append(Grant(acquire, self._mode, acquire.fence))
        end = self._find_end()
        self._rely(acquire, self._mode, at, end, acquire.fence)
        for convert in self.handle.converts:
            self._convert(convert, end)
        self.grants[-1].ends.append((end, NL))

    def _rely(self, op: Op, mode: int, start: int, end: int, fence: int) -> None:
        """From ``start`` on the client relies on ``mode``, until ``end`` if nothing else comes."""
        if self.stretches:
            last = self.stretches[-1]
            self.stretches[-1] = Stretch(last.mode, last.start, min(last.end, start), last.fence, last.op)
        self.stretches.append(Stretch(mode, start, end, fence, op))

    # -- its end

    def _find_end(self) -> int:
        """When the client could rely on it no more: the call of release, or the loss."""
        lost: Note | None = None  # since when it is lost, the last time
        for note in self.handle.notices:
            if self.lost is not None:
                self._after_loss(note)
            elif note.what is What.LOST:
                self._deadline = max(self._deadline, note.deadline)
                lost = lost or note
                self.lost = None if note.reason in PASSING else note
            else:  # what was lost with a lease that was renewed later was not lost: it is one hold
                self._seen, self._deadline, lost = note.t, max(self._deadline, note.deadline), None
        release = self.handle.release
        if release is None:
            return self._end_without_release(lost)
        self.over = release.called if release.returned is None else release.returned
        if release.result is Result.OK and self.lost is not None:
            self._add("revived", f"{release}: it was lost ({self.lost.reason}) at {_time(self.lost.t)}")
        held = release.result is Result.OK or (release.result is Result.UNKNOWN and lost is None)
        if held and self.lost is None:  # a lease that had run out was renewed by then
            return release.called
        return self._end_by_loss(release.called if lost is None else lost.t)

    def _end_without_release(self, lost: Note | None) -> int:
        acquire = self.handle.acquire
        if lost is not None:
            self.over = lost.t
        elif acquire.client in self._history.deaths:
            self.over = self._history.deaths[acquire.client]
            return self._seen
        if self.lost is None and acquire.client not in self._history.deaths:
            self._add("end", f"{acquire}: was neither released nor reported lost")
        return self._seen if lost is None else self._end_by_loss(lost.t)

    def _end_by_loss(self, noticed: int) -> int:
        """When a lock that was noticed to be lost can have been lost at the earliest."""
        acquire = self.handle.acquire
        began = acquire.returned or 0
        if any(began - LEAVE_US <= t <= noticed for t in self._history.leaves.get(acquire.node, ())):
            return self._seen  # a node that leaves ends leases before their deadline
        return max(self._seen, min(noticed, self._deadline))

    def _after_loss(self, note: Note) -> None:
        assert self.lost is not None
        if note.what is What.SEEN:
            text = f"is valid at {_time(note.t)}, but was lost ({self.lost.reason}) at {_time(self.lost.t)}"
            self._add("revived", f"{self.handle.acquire}: {text}")

    # -- conversions

    def _convert(self, op: Op, end: int) -> None:
        old, new = self._mode, _number(op.mode)
        down = both(Mode(old), Mode(new)) == new
        if op.called >= end and op.result is not Result.OK:
            return
        if op.result is Result.NO:
            return  # the old mode was there all the time
        grant = self.grants[-1]
        if op.result is Result.UNKNOWN:
            self._fence_known = False
            self._smaller(op, int(both(Mode(old), Mode(new))), end)
        elif down:
            if self._fence_known and op.fence != grant.fence:
                text = f"a conversion downwards changed the fence {fence_text(grant.fence)}"
                self._add("fence", f"{op}: {text} to {fence_text(op.fence)}")
            self._smaller(op, new, end)
        else:
            self._larger(op, old, new, end)

    def _smaller(self, op: Op, new: int, end: int) -> None:
        self._mode = new
        self.grants[-1].ends.append((min(op.called, end), new))
        if op.called < end:
            self._rely(op, new, op.called, end, self.grants[-1].fence)

    def _larger(self, op: Op, old: int, new: int, end: int) -> None:
        assert op.returned is not None
        before = self.grants[-1]
        self._require_fence(op)
        if op.fence <= before.fence:
            text = f"has fence {fence_text(op.fence)} after {fence_text(before.fence)}"
            self._add("fence", f"{op}: a conversion that is not downwards {text}")
        grant = Grant(op, new, op.fence)
        before.next = grant
        self.grants.append(grant)
        self._mode, self._fence_known = new, True
        if op.called < end:
            self._rely(op, int(both(Mode(old), Mode(new))), op.called, end, before.fence)
        if op.returned < end:
            self._rely(op, new, op.returned, end, op.fence)

    def _require_fence(self, op: Op) -> None:
        if op.fence <= 0:
            self._add("fence", f"{op}: it has no fence")

    def _add(self, rule: str, text: str) -> None:
        self._verdict.problems.append(Problem(rule, text))


LEAVE_US = 1_000_000  #: a node that was asked to leave may grant for so long

# -- one name ----------------------------------------------------------------------------------------------------


def _check_exclusion(verdict: Verdict, name: str, stretches: list[Stretch]) -> None:
    """No two incompatible modes of different handles at one instant."""
    under_way: list[Stretch] = []
    for stretch in sorted(stretches, key=lambda each: (each.start, each.fence)):
        if stretch.start >= stretch.end or stretch.mode == NL:
            continue
        under_way = [other for other in under_way if other.end > stretch.start]
        for other in under_way:
            same = (other.op.client, other.op.handle) == (stretch.op.client, stretch.op.handle)
            if not same and not COMPATIBLE[other.mode][stretch.mode]:
                shared = (min(other.end, stretch.end) - stretch.start) / 1000
                text = f"{name} is held twice for {shared:.3f} ms: {other}; {stretch}"
                verdict.problems.append(Problem("exclusion", text))
        under_way.append(stretch)


def _check_fences(verdict: Verdict, name: str, grants: list[Grant]) -> None:
    """Each grant has one of its own."""
    users: dict[int, Grant] = {}
    for grant in grants:
        other = users.setdefault(grant.fence, grant)
        if other is not grant and grant.fence > 0:
            verdict.problems.append(Problem("fence", f"{name}: one fence for two grants: {other}; {grant}"))


def order_problems(name: str, grants: list[Grant]) -> list[Problem]:
    """Grants that have no instant, in the order of the fences. Empty: the history of this name is linearizable."""
    problems: list[Problem] = []
    now, last = 0, ""  # the instant of the grant before, and what it was
    free: list[tuple[int, str]] = [(0, "")] * len(NAMES)  # by mode: since when it can be granted, who held it up
    blocking: dict[tuple[str, int], Grant] = {}  # grants that end with a conversion, by that
    for grant in sorted(grants, key=lambda each: (each.fence, each.op.called)):
        blocking.pop(_key(grant), None)
        returned = grant.op.returned
        assert returned is not None
        earliest, why = max((now, last), (grant.op.called, ""), free[grant.mode], key=lambda each: each[0])
        blockers = [other for other in blocking.values() if other.free_for(grant.mode) is None]
        if blockers:
            text = f"granted before the conversion of one that excludes it: {blockers[0]}"
            problems.append(Problem("order", f"{name}: {grant}; {text}"))
        elif earliest > returned:
            problems.append(Problem("order", f"{name}: {grant}; not before {_time(earliest)}, because of {why}"))
        else:
            now, last = earliest, str(grant) if earliest > now else last
        for mode in range(len(NAMES)):
            since = grant.free_for(mode)
            if since is not None and since > free[mode][0]:
                free[mode] = (since, str(grant))
        if grant.next is not None:
            blocking[_key(grant.next)] = grant
    return problems


def _key(grant: Grant) -> tuple[str, int]:
    return grant.op.client, grant.op.number


class _Waits:
    """Looks for waits for nothing, on one name: in calm times, with nobody else in sight."""

    def __init__(self, verdict: Verdict, history: History, lives: list[_Life], bound: int) -> None:
        self.verdict = verdict
        self.history = history
        self.bound = bound
        self.lives = sorted(lives, key=lambda life: life.handle.acquire.called)
        self.calls = [life.handle.acquire.called for life in self.lives]

    def check(self) -> None:
        for life in self.lives:
            for op in life.handle.ops():
                if op.verb is Verb.RELEASE or not self.lives:
                    continue
                until = op.returned if op.returned is not None else life.over
                if op.patient and until - op.called > self.bound:
                    self._wait(life, op, op.called, until)
                elif op.result is Result.NO and op.reason == BUSY and op.verb is Verb.ACQUIRE:
                    self._wait(life, op, op.called - self.bound - 1, until)

    def _wait(self, own: _Life, op: Op, start: int, until: int) -> None:
        """Find the longest time without anybody else in each calm stretch."""
        for calm_from, calm_to in self.history.calm:
            begin, end = max(start, calm_from), min(until, calm_to)
            if end - begin > self.bound and self._gap(own, begin, end) > self.bound:
                text = f"waited for {(until - op.called) / 1e6:.3f} s, or was refused, though nobody else was there"
                self.verdict.problems.append(Problem("progress", f"{op}: {text}"))
                return

    def _gap(self, own: _Life, begin: int, end: int) -> int:
        longest, free_since = 0, begin
        for life in self.lives[: bisect_left(self.calls, end)]:
            if life is own or life.over <= begin:
                continue
            longest = max(longest, life.handle.acquire.called - free_since)
            free_since = max(free_since, life.over)
        return max(longest, end - free_since)


def _number(mode: str) -> int:
    return NAMES.index(mode)


def fence_text(fence: int) -> str:
    """Ring sequence and number, as K14 composes a fence."""
    return f"{fence >> 32:x}.{fence & 0xFFFFFFFF}" if fence >> 32 else str(fence)


def _time(t: int) -> str:
    return f"{t / 1e6:.6f}"
