"""A checker of what lock clients saw: merged histories in, sentences about what must not be out.

Every client writes down what it did and what it was told, with times of one clock that all processes of the
host share (``vsync.clock.boot_us``). The checker knows nothing of the lock manager; from the histories and the
final counters alone it judges these rules:

==============  =========================================================================================
``outcome``     every request for a lock has exactly one outcome; none only if its client died
``order``       a client's events make sense: nothing but a request before the grant, nothing after the end
``after-loss``  a lock that was lost for good is not held again by the same grant
``overlap``     no two holds of incompatible modes on one name at the same instant
``fence``       no two grants of one name with the same fence; later grants have larger fences
``refused``     the guarded resource refuses nobody whose lock is valid
``count``       every acknowledged increment is counted exactly once; unknown ones at most once
``stable``      a value changes under a valid lock by its holder alone
==============  =========================================================================================

When does a hold end? At the *call* of release (pitfalls D8). A lost one: when the loss was noticed or the lease
that was last seen had run out, whichever is first; on a node that was leaving on purpose, which may end
leases early, when the lock was last seen to be valid.

Fences: of two grants that exclude each other the later has the larger fence. Grants that may be held together
may be answered in any order, so there the rule is: who asks after another's release gets a larger one.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from dlm.modes import COMPATIBLE, NAMES

__all__ = ["Event", "Hold", "Problem", "Verdict", "What", "judge", "parse"]


class What(StrEnum):
    """Kinds of events. Those of a client belong to one of its rounds; the last five are about nodes."""

    ASK = "ask"  #: a lock request is about to be made: name, mode, node
    GRANTED = "granted"  #: it was granted: fence, deadline
    FAILED = "failed"  #: it was not: reason
    VALID = "valid"  #: the lock was checked and is held: deadline
    READ = "read"  #: the guarded value was read: value
    TRY = "try"  #: an increment to ``value`` is about to be sent to the resource
    WROTE = "wrote"  #: the resource took it
    REFUSED = "refused"  #: the resource refused a read or an increment; ``valid``: the lock was valid afterwards
    CONVERT = "convert"  #: from here on only ``mode`` is relied upon
    LOST = "lost"  #: the lock was noticed to be lost: reason
    RELEASE = "release"  #: it was given back; the time is that before the call
    DIED = "died"  #: the client was killed, or its end is unknown
    KILL = "kill"
    LEAVE = "leave"  #: a node begins to leave on purpose
    STOP = "stop"
    CONT = "cont"
    START = "start"


#: Reasons of a loss that can pass again: the lease had run out and was renewed before anybody else was served.
PASSING = frozenset({"lease"})


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a history. ``t`` is in µs of the host's boot-time clock; fields without meaning are empty."""

    t: int
    client: str
    what: What
    round: int = 0
    name: str = ""
    mode: str = ""
    node: str = ""
    fence: int = 0
    value: int = 0
    deadline: int = 0
    reason: str = ""
    valid: bool = False

    def line(self) -> bytes:
        """As one line of JSON, without the empty fields."""
        row = {key: value for key, value in asdict(self).items() if value or key == "t"}
        return json.dumps(row, separators=(",", ":")).encode() + b"\n"


def parse(data: bytes) -> Iterator[Event]:
    """The events of a file. A last line without its end is what a killed writer leaves: it is ignored.

    Raises ``ValueError`` for anything else that is no event.
    """
    *lines, _ = data.split(b"\n")
    for line in lines:
        row: dict[str, Any] = json.loads(line)
        row["what"] = What(row["what"])
        yield Event(**row)


@dataclass(frozen=True, slots=True)
class Hold:
    """A stretch of time in which a client relied on one mode of one grant. µs; ``end`` is not part of it."""

    client: str
    round: int
    name: str
    mode: int
    fence: int
    asked: int
    start: int
    end: int
    node: str

    def __str__(self) -> str:
        who = f"{self.client} round {self.round} at node {self.node}"
        return f"{who}: {NAMES[self.mode]} fence {_fence(self.fence)} from {_time(self.start)} to {_time(self.end)}"


@dataclass(frozen=True, slots=True)
class Problem:
    """A broken rule; ``text`` says who, where and when."""

    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


@dataclass(slots=True)
class Verdict:
    """What was found. ``good`` if no rule is broken; the rest is for people."""

    problems: list[Problem] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    acknowledged: int = 0  #: increments that the resource took and the client knows it
    unknown: int = 0  #: increments of clients that were killed while they asked for them
    refused: int = 0  #: accesses under a lost lock that the fence kept out
    failed: Counter[str] = field(default_factory=Counter)  #: requests that were not granted, by reason
    lost: Counter[str] = field(default_factory=Counter)  #: locks that were lost, by reason

    @property
    def good(self) -> bool:
        """Whether no rule is broken."""
        return not self.problems

    def add(self, rule: str, text: str) -> None:
        """Note a broken rule."""
        self.problems.append(Problem(rule, text))

    def report(self, limit: int = 20) -> str:
        """The problems as lines, the first ``limit`` of them."""
        lines = [str(problem) for problem in self.problems[:limit]]
        if len(self.problems) > limit:
            lines.append(f"... and {len(self.problems) - limit} more")
        return "\n".join(lines)


def judge(events: Iterable[Event], final: Mapping[str, int] | None = None) -> Verdict:
    """Judge the merged histories (in any order) against the counters as they stand at the end.

    ``final`` maps names to values, ``None`` leaves them unjudged; a name that is missing counts as 0.
    """
    verdict = Verdict()
    rounds: dict[tuple[str, int], list[Event]] = defaultdict(list)
    nodes: list[Event] = []
    for event in events:
        if event.round:
            rounds[event.client, event.round].append(event)
        else:
            nodes.append(event)
    leaves = _leaves(nodes)
    increments: dict[str, list[_Increment]] = defaultdict(list)
    for story in rounds.values():  # a client's events are in its own order
        taken = _Round(verdict, story, leaves).read()
        if taken is not None:
            increments[taken.name].append(taken)
    by_name: dict[str, list[Hold]] = defaultdict(list)
    for hold in verdict.holds:
        by_name[hold.name].append(hold)
    for name in sorted(by_name):
        holds = sorted(by_name[name], key=lambda hold: (hold.start, hold.fence))
        _check_distinct(verdict, name, holds)
        # Who learnt of its grant when it was lost already never relied on it: nobody could overlap with that.
        real = [hold for hold in holds if hold.start < hold.end]
        _check_overlap(verdict, name, real)
        _check_fences(verdict, name, real)
    if final is not None:
        for name in sorted({*final, *increments}):
            _check_count(verdict, name, increments[name], final.get(name, 0))
    return verdict


# -- one round ---------------------------------------------------------------------------------------------------

_Leaves = Mapping[str, list[tuple[int, int]]]  #: by node: from when to when it was leaving or absent on purpose


def _leaves(nodes: Iterable[Event]) -> _Leaves:
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    since: dict[str, int] = {}
    for event in sorted(nodes, key=lambda event: event.t):
        if event.what is What.LEAVE:
            since.setdefault(event.node, event.t)
        elif event.what is What.START and event.node in since:
            found[event.node].append((since.pop(event.node), event.t))
    for node, start in since.items():
        found[node].append((start, sys.maxsize))
    return found


@dataclass(frozen=True, slots=True)
class _Increment:
    """An increment that was sent to the resource; ``known``: and acknowledged."""

    name: str
    value: int
    known: bool
    who: str


class _Round:
    """Reads one round of one client: a request, its outcome, and what was done under the lock."""

    def __init__(self, verdict: Verdict, story: list[Event], leaves: _Leaves) -> None:
        self.verdict = verdict
        self.story = story
        self.leaves = leaves
        self.ask: Event | None = None
        self.grant: Event | None = None
        self.holds: list[Hold] = []
        self.over: What | None = None  #: how it ended; a passing loss is an end until the lock is seen again
        self.gone: Event | None = None  #: lost for good
        self.died = False
        self.mode = 0
        self.since = 0
        self.seen = 0  #: when the lock was last known to be held
        self.deadline = 0
        self.values: list[int] = []  #: as read or written under this lock since the last write
        self.tried: Event | None = None
        self.answered = False  #: the resource took the increment

    @property
    def who(self) -> str:
        first = self.story[0]
        return f"{first.client} round {first.round}"

    def read(self) -> _Increment | None:
        """Check the round, note its holds; returns its increment if it may have reached the resource."""
        for event in self.story:
            self._step(event)
        if self.ask is None:
            return None
        if self.over is None:
            what = "the request for" if self.grant is None else "the hold of"
            self.verdict.add("outcome", f"{self.who}: {what} {self.ask.name} has no end")
            self._end(self.seen)
        self.verdict.holds.extend(self.holds)
        if self.tried is None:
            return None
        if self.answered:
            self.verdict.acknowledged += 1
        elif self.died:
            self.verdict.unknown += 1
        else:
            self.verdict.add("outcome", f"{self.who}: the increment of {self.ask.name} has no answer")
        return _Increment(self.ask.name, self.tried.value, self.answered, self.who)

    def _step(self, event: Event) -> None:
        if event.what is What.ASK:
            if self.ask is not None:
                self.verdict.add("order", f"{self.who}: asks twice")
            self.ask = event
        elif self.ask is None:
            self.verdict.add("order", f"{self.who}: {event.what} before any request")
            self.ask = event
        elif event.what in (What.GRANTED, What.FAILED):
            self._outcome(event)
        elif event.what is What.DIED:
            self.died = True
            if self.over is None:
                self.over = event.what
                self._end(self.seen)
        elif self.grant is None:
            self.verdict.add("order", f"{self.who}: {event.what} without a grant")
        elif event.what in _AT_RESOURCE:
            self._at_resource(event)
        else:
            self._of_lock(event)

    def _outcome(self, event: Event) -> None:
        if self.grant is not None or self.over is not None:
            first = What.GRANTED if self.grant is not None else self.over
            self.verdict.add("outcome", f"{self.who}: the request has two outcomes, {first} and {event.what}")
        elif event.what is What.FAILED:
            self.over = event.what
            self.verdict.failed[event.reason] += 1
        else:
            assert self.ask is not None
            self.grant = event
            self.mode, self.since = NAMES.index(self.ask.mode), event.t
            self.seen, self.deadline = event.t, event.deadline

    # -- the lock

    def _of_lock(self, event: Event) -> None:
        if self.over is What.RELEASE:
            self.verdict.add("order", f"{self.who}: {event.what} after release")
        elif event.what is What.LOST:
            self._lost(event)
        elif self.gone is not None:
            self.verdict.add(
                "after-loss",
                f"{self.who}: {event.what} of {self._lock()} at {_time(event.t)}, "
                f"although it was lost ({self.gone.reason}) at {_time(self.gone.t)}",
            )
        else:
            self._held(event)

    def _lost(self, event: Event) -> None:
        assert self.ask is not None
        if event.reason not in PASSING:
            self.gone = self.gone or event
        if self.over is None:
            self.verdict.lost[event.reason] += 1
            absences = self.leaves.get(self.ask.node, ())
            left = any(start <= event.t and self.since < end for start, end in absences)
            self.over = event.what
            self._end(self.seen if left else max(self.seen, min(event.t, self.deadline)))

    def _held(self, event: Event) -> None:
        """The client knows that it holds the lock at this instant."""
        if self.over is What.LOST:  # the lease was renewed before anybody else was served: one hold
            self.over = None
            self.holds.pop()
        self.seen, self.deadline = event.t, max(self.deadline, event.deadline)
        if len(set(self.values)) > 1:
            values = ", ".join(str(value) for value in self.values)
            self.verdict.add("stable", f"{self.who}: under {self._lock()} others changed the value: {values}")
            self.values.clear()
        if event.what is What.CONVERT:
            self._end(event.t)
            self.mode, self.since = NAMES.index(event.mode), event.t
        elif event.what is What.RELEASE:
            self.over = event.what
            self._end(event.t)

    def _end(self, end: int) -> None:
        if self.ask is not None and self.grant is not None:
            ask = self.ask
            self.holds.append(
                Hold(ask.client, ask.round, ask.name, self.mode, self.grant.fence, ask.t, self.since, end, ask.node)
            )

    def _lock(self) -> str:
        assert self.ask is not None
        assert self.grant is not None
        return f"{NAMES[self.mode]} on {self.ask.name} with fence {_fence(self.grant.fence)}"

    # -- the resource; its answers may come after a loss, that is what fences are for

    def _at_resource(self, event: Event) -> None:
        if event.what is What.READ:
            self.values.append(event.value)
        elif event.what is What.TRY:
            self.tried = event
        elif event.what is What.REFUSED:
            self.tried = None
            if event.valid:
                seen = f"the resource has seen fence {_fence(event.fence)} at {_time(event.t)}"
                self.verdict.add("refused", f"{self.who}: {self._lock()} is valid, but {seen}")
            else:
                self.verdict.refused += 1
        else:
            if self.tried is None or self.tried.value != event.value or self.answered:
                self.verdict.add("order", f"{self.who}: an answer to an increment that was not sent")
            self.answered = True
            self.values = [event.value]


_AT_RESOURCE = frozenset({What.READ, What.TRY, What.WROTE, What.REFUSED})


# -- one name ----------------------------------------------------------------------------------------------------


def _check_overlap(verdict: Verdict, name: str, holds: list[Hold]) -> None:
    """No two incompatible modes at one instant. ``holds`` are sorted by start."""
    open_holds: list[Hold] = []
    for hold in holds:
        open_holds = [other for other in open_holds if other.end > hold.start]
        for other in open_holds:
            if not COMPATIBLE[other.mode][hold.mode] and not _same_grant(other, hold):
                shared = (min(other.end, hold.end) - hold.start) / 1000
                verdict.add("overlap", f"{name} is held twice for {shared:.3f} ms: {other}; {hold}")
        open_holds.append(hold)


def _check_distinct(verdict: Verdict, name: str, holds: list[Hold]) -> None:
    """Each grant has a fence of its own."""
    users: dict[int, Hold] = {}
    for hold in holds:
        other = users.setdefault(hold.fence, hold)
        if not _same_grant(other, hold):
            verdict.add("fence", f"{name}: one fence for two grants: {other}; {hold}")


def _check_fences(verdict: Verdict, name: str, holds: list[Hold]) -> None:
    """They grow from grant to grant. ``holds`` are sorted by start."""
    highest: dict[int, Hold] = {}  # by mode, among those that began earlier
    for hold in holds:
        for mode, before in highest.items():
            if before.fence > hold.fence and not COMPATIBLE[mode][hold.mode]:
                verdict.add("fence", f"{name}: the fence goes backwards: {before}; then {hold}")
        if hold.mode not in highest or highest[hold.mode].fence < hold.fence:
            highest[hold.mode] = hold
    _check_fences_of_sharers(verdict, name, holds)


def _check_fences_of_sharers(verdict: Verdict, name: str, holds: list[Hold]) -> None:
    """Whoever asked after the end of another hold has the larger fence, whatever the modes."""
    ended = sorted(holds, key=lambda hold: hold.end)
    best: Hold | None = None
    index = 0
    for hold in sorted(holds, key=lambda hold: hold.asked):
        while index < len(ended) and ended[index].end <= hold.asked:
            if best is None or ended[index].fence > best.fence:
                best = ended[index]
            index += 1
        if best is not None and best.fence > hold.fence and COMPATIBLE[best.mode][hold.mode]:
            verdict.add("fence", f"{name}: asked for later, but the fence is smaller: {best}; then {hold}")


def _check_count(verdict: Verdict, name: str, increments: list[_Increment], final: int) -> None:
    """Each value from 1 to the last was written exactly once, as far as it is known by whom."""
    writers: dict[int, _Increment] = {}
    known = [increment for increment in increments if increment.known]
    unknown = [increment for increment in increments if not increment.known]
    for increment in known:
        other = writers.setdefault(increment.value, increment)
        if other is not increment:
            text = f"{other.who} and {increment.who} both wrote {increment.value}"
            verdict.add("count", f"{name}: a lost update: {text}")
    if not len(known) <= final <= len(known) + len(unknown):
        may = f" and {len(unknown)} of unknown outcome" if unknown else ""
        verdict.add("count", f"{name}: stands at {final} after {len(known)} acknowledged increments{may}")
    for value in sorted(value for value in writers if value > final):
        verdict.add("count", f"{name}: stands at {final}, but {writers[value].who} wrote {value}")
    possible = {increment.value for increment in unknown}
    for value in range(1, final + 1):
        if value not in writers and value not in possible:
            verdict.add("count", f"{name}: nobody wrote {value}, but it stands at {final}")


def _same_grant(a: Hold, b: Hold) -> bool:
    return (a.client, a.round) == (b.client, b.round)


def _fence(fence: int) -> str:
    """Ring sequence and number, as K14 composes a fence."""
    return f"{fence >> 32:x}.{fence & 0xFFFFFFFF}" if fence >> 32 else str(fence)


def _time(t: int) -> str:
    return f"{t / 1e6:.6f}"
