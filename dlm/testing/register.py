"""Registers that are guarded by fences, judged: what a lock is for, after all.

The register (``dlm.FencedResource``) remembers the largest fence of those who *opened* it to write (``claim``) or
wrote, and refuses smaller ones. Judged, from the callers' accounts alone:

=============  ============================================================================================
``stale``      nothing is accepted with a smaller fence after somebody opened or wrote it with a larger one
``register``   there is an order of all operations, each between call and answer, that a register has (``wgl``)
``refused``    nobody is refused whose lock (PR, PW or EX) is valid all the while
=============  ============================================================================================

Operations of unknown outcome, of clients that were killed, count as they fit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from dlm.info import Mode
from dlm.testing.calls import History, Op, Problem, Result, Verb
from dlm.testing.linear import Stretch, fence_text
from dlm.testing.wgl import NEVER, Call, Undecided, linearize

__all__ = ["judge_registers"]

State = tuple[int, int]  #: the value, and the largest fence seen
NOBODY = "the judge"
GUARDED = frozenset({int(Mode.PR), int(Mode.PW), int(Mode.EX)})


def judge_registers(
    history: History, stretches: Mapping[tuple[str, int], list[Stretch]], final: Mapping[str, int] | None = None
) -> list[Problem]:
    """Judge all registers. ``stretches``: what was relied upon, by (client, handle); ``final``: the values at the
    end, where they are known.
    """
    names: dict[str, list[Op]] = defaultdict(list)
    for op in history.registers:
        names[op.name].append(op)
    problems: list[Problem] = []
    for name in sorted(names):
        ops = sorted(names[name], key=lambda op: op.called)
        problems += _stale(name, ops)
        problems += _valid_and_refused(name, ops, stretches)
        if final is not None:
            ops.append(_last_read(name, final.get(name, 0), history.end + 1))
        problems += _no_register(name, ops, history)
    return problems


def _last_read(name: str, value: int, t: int) -> Op:
    return Op(NOBODY, 0, Verb.READ, 0, name, "", "", t, False, t, Result.OK, NEVER, 0, value)


def _stale(name: str, ops: list[Op]) -> list[Problem]:
    """``ops`` by call: whoever was accepted had a fence as large as all that were accepted before its call."""
    accepted = [op for op in ops if op.result is Result.OK and op.returned is not None]
    marks = sorted((op for op in accepted if op.verb is not Verb.READ), key=lambda op: op.returned or 0)
    problems, newest, index = [], None, 0
    for op in accepted:
        while index < len(marks) and (marks[index].returned or 0) < op.called:
            if newest is None or marks[index].fence > newest.fence:
                newest = marks[index]
            index += 1
        if newest is not None and newest.fence > op.fence:
            text = f"{op} with fence {fence_text(op.fence)} was accepted after {fence_text(newest.fence)}: {newest}"
            problems.append(Problem("stale", f"{name}: {text}"))
    return problems


def _valid_and_refused(
    name: str, ops: list[Op], stretches: Mapping[tuple[str, int], list[Stretch]]
) -> list[Problem]:
    problems = []
    for op in ops:
        if op.result is not Result.NO or op.returned is None:
            continue
        for stretch in stretches.get((op.client, op.handle), ()):
            inside = stretch.start <= op.called and op.returned < stretch.end
            if inside and stretch.mode in GUARDED and stretch.fence == op.fence:
                problems.append(Problem("refused", f"{name}: {op}; its lock is valid all the while: {stretch}"))
    return problems


def _no_register(name: str, ops: list[Op], history: History) -> list[Problem]:
    calls = [_call(op, history) for op in ops if op.verb is not Verb.READ or op.result is not Result.UNKNOWN]
    try:
        found = linearize(calls, (0, 0), step)
    except Undecided as undecided:
        return [Problem("register", f"{name}: not decided, {undecided}")]
    if found.good:
        return []
    assert found.stuck is not None
    tail = "; ".join(describe(calls[index].what) for index in found.order[-4:])
    stuck = describe(calls[found.stuck].what)
    return [Problem("register", f"{name}: no order explains {stuck}. Explained until then: … {tail or 'nothing'}")]


def _call(op: Op, history: History) -> Call[Op]:
    """A client that was killed did nothing after its death."""
    if op.returned is not None and op.result is not Result.UNKNOWN:
        return Call(op.called, op.returned, op)
    return Call(op.called, max(op.called, history.deaths.get(op.client, NEVER)), op, optional=True)


def step(state: State, op: Op) -> State | None:
    """The sequential register."""
    value, seen = state
    if op.result is Result.NO:
        return state if op.fence < seen else None
    if op.fence < seen:
        return None
    if op.verb is Verb.WRITE:
        return op.value, op.fence
    if op.result is Result.OK and op.value != value:
        return None
    return state if op.verb is Verb.READ else (value, op.fence)


def describe(op: Op) -> str:
    """An operation with its value and fence."""
    return f"{op} (value {op.value}, fence {fence_text(op.fence)})"
