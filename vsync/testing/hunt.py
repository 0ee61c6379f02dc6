"""Many seeds, in one process or several; what came of them in one sum."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from vsync.testing.options import draw
from vsync.testing.plugin import Plugin
from vsync.testing.rules import ACTIONS, CELLS, NEVER_SENT, POINTLESS, SIDES, STATES, TYPES, Cell
from vsync.testing.run import Measured, run

__all__ = ["STUCK", "Plugins", "Sum", "bounds", "coverage", "hunt"]

Plugins = Callable[[int], Sequence[Plugin]]
STUCK = "STUCK"  #: in place of a broken rule: the run does not end
PATIENCE_S = 100.0  #: real time after which it is taken for one that does not


@dataclass(slots=True)
class _Found:
    """What a process tells of one seed."""

    seed: int
    line: str
    rule: str
    cpu: float
    fired: Counter[Cell] = field(default_factory=Counter)
    measured: Measured = field(default_factory=dict)


@dataclass(slots=True)
class Sum:
    """What came of many seeds."""

    seeds: int = 0
    cpu: float = 0.0
    failed: list[int] = field(default_factory=list)
    rules: dict[int, str] = field(default_factory=dict)  #: by seed that failed
    fired: Counter[Cell] = field(default_factory=Counter)
    measured: dict[str, tuple[int, int, int]] = field(default_factory=dict)  #: closest to its bound; which seed

    def line(self) -> str:
        """For people."""
        verdict = f"{len(self.failed)} with a violation: {self.failed[:20]}" if self.failed else "no violation"
        return f"{self.seeds} seeds, {verdict}, {self.cpu / max(self.seeds, 1):.3f} s CPU per seed"


def hunt(
    seeds: Sequence[int],
    nodes: int | Sequence[int],
    plugins: Plugins,
    *,
    chaos: int | None = None,
    jobs: int = 1,
    until: float | None = None,
    least: int = 0,
    keep_going: bool = False,
    told: Callable[[str], None] | None = None,
) -> Sum:
    """Run seeds, in order, until one fails (or ``keep_going``) or ``until`` (``time.monotonic``) has come,
    not before ``least`` seeds have been run.

    ``nodes``: how many; of a sequence each seed takes the one at its place modulo the length. If ``jobs`` is more
    than 1, ``plugins`` must be a function that another process can import, and a run that does not end is noticed.
    """
    total = Sum()
    one = partial(_one, nodes=nodes, plugins=plugins, chaos=chaos)
    for found in _spread(one, seeds, jobs):
        total.seeds += 1
        total.cpu += found.cpu
        total.fired += found.fired
        for name, (value, bound) in found.measured.items():
            if name not in total.measured or value * total.measured[name][1] > total.measured[name][0] * bound:
                total.measured[name] = (value, bound, found.seed)
        if told is not None:
            told(found.line)
        if found.rule:
            total.failed.append(found.seed)
            total.rules[found.seed] = found.rule
            if not keep_going:
                break
        if until is not None and time.monotonic() > until and total.seeds >= least:
            break
    return total


def _one(seed: int, nodes: int | Sequence[int], plugins: Plugins, chaos: int | None) -> _Found:
    count = nodes if isinstance(nodes, int) else nodes[seed % len(nodes)]
    result = run(draw(seed, count, chaos), plugins(seed), 1)
    rule = result.violation.rule if result.violation else ""
    return _Found(seed, result.line(), rule, result.cpu, result.fired, result.measured)


def _spread(one: Callable[[int], _Found], seeds: Sequence[int], jobs: int) -> Iterator[_Found]:
    if jobs == 1:
        yield from map(one, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        coming = pool.imap(one, seeds)
        for seed in seeds:
            try:
                yield coming.next(PATIENCE_S)
            except multiprocessing.TimeoutError:
                yield _Found(seed, f"seed {seed}: does not end", STUCK, PATIENCE_S)
                return


def bounds(measured: Mapping[str, tuple[int, int, int]]) -> list[str]:
    """How close the runs came to each bound of ``vsync.testing.bounds``."""
    return [
        f"{name}: {value} of {bound} ({value / bound:.0%}), seed {seed}"
        for name, (value, bound, seed) in sorted(measured.items())
    ]


def coverage(fired: Counter[Cell]) -> list[str]:
    """A table: at how many frames of each type, sent or received in each state, something was broken on purpose.

    Behind each number stands how many kinds of fault that were, if not all. Then what has not been met, and why
    the rest never can be.
    """
    lines = ["nested faults (type, side)".ljust(28) + "".join(state.rjust(13) for state in STATES)]
    for kind in TYPES:
        for side in SIDES:
            cells = ["" if _never(kind, state, side) else _counted(fired, kind, state, side) for state in STATES]
            lines.append(f"{kind} {side}".ljust(28) + "".join((cell or "never").rjust(13) for cell in cells))
    missing = [cell for cell in CELLS if not fired[cell]]
    lines.append(f"{len(CELLS) - len(missing)} of {len(CELLS)} met" + (", not met:" if missing else ""))
    lines += ["  " + " ".join(cell) for cell in missing]
    reasons: dict[str, list[str]] = {}
    for cell, why in [*NEVER_SENT.items(), *POINTLESS.items()]:
        reasons.setdefault(why, []).append(" ".join(cell))
    return lines + [f"never {', '.join(which)}: {why}" for why, which in reasons.items()]


def _never(kind: str, state: str, side: str) -> bool:
    return side == "sent" and (kind, state) in NEVER_SENT


def _counted(fired: Counter[Cell], kind: str, state: str, side: str) -> str:
    counts = [fired[kind, state, side, a] for a in ACTIONS if (kind, state, side, a) not in POINTLESS]
    share = "" if all(counts) else f" {sum(map(bool, counts))}/{len(counts)}"
    return f"{sum(counts)}{share}"
