"""``vsync bench view-change``: how long it takes from a fault to the view that follows, at the last survivor.

Each round hurts another node, so that every third victim is the representative. The clock is CLOCK_BOOTTIME, read
before the fault and by each watching session when the view arrives; so a figure has in it what a program on the
cluster sees: signal, detection, re-formation, the daemon's socket. ``restart`` includes the start of the process.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vsync.bench.link_cut import LinkCut, summary
from vsync.bench.subject import Cabled, Subject
from vsync.clock import boot_us

__all__ = ["CABLE_FAULTS", "FAULTS", "Measured", "measure", "measure_cables"]

TIMEOUT_S = 60.0
S = TypeVar("S", bound=Subject)

#: What is measured, in words.
FAULTS = {
    "kill": "kill -9 of a daemon, until the survivors' view",
    "terminate": "SIGTERM (graceful leave), until the others' view",
    "stop": "SIGSTOP (a silent host), until the survivors' view",
    "cont": "SIGCONT, until the view of all",
    "restart": "start of a killed daemon, until the view of all",
}

#: The same for clusters whose nodes have cables.
CABLE_FAULTS = {
    "cut": "cable of a node cut, until the survivors' view",
    "mend": "cable put in again, until the view of all",
}


@dataclass(slots=True)
class Measured:
    """Milliseconds of one subject, by fault; and what became of messages when one of two links was cut."""

    subject: str
    times_ms: dict[str, list[float]] = field(default_factory=dict)
    link_cuts: list[LinkCut] = field(default_factory=list)

    def median(self, fault: str) -> float | None:
        """Of the rounds; ``None`` if it was not measured."""
        times = self.times_ms.get(fault)
        return statistics.median(times) if times else None

    def to_json(self) -> dict[str, Any]:
        """Medians and all single times."""
        medians = {fault: round(statistics.median(times), 1) for fault, times in self.times_ms.items()}
        times = {fault: [round(t, 1) for t in times] for fault, times in self.times_ms.items()}
        cuts = {"link_cut": summary(self.link_cuts)} if self.link_cuts else {}
        return {"subject": self.subject, "median_ms": medians, "times_ms": times, **cuts}


def measure(name: str, subject: Subject, rounds: int, tell: Callable[[str], None] = lambda text: None) -> Measured:
    """All faults, ``rounds`` times. Raises ``NotSeen``. ``tell`` is told how far it is."""
    measured = Measured(name)
    _repeat(measured, subject, _round, rounds, tell)
    return measured


def measure_cables(measured: Measured, subject: Cabled, rounds: int, tell: Callable[[str], None]) -> None:
    """The faults of cables, in addition. Raises ``NotSeen``."""
    _repeat(measured, subject, _cable_round, rounds, tell)


def _repeat(
    measured: Measured,
    subject: S,
    one: Callable[[S, str], Iterator[tuple[str, int]]],
    rounds: int,
    tell: Callable[[str], None],
) -> None:
    for number in range(rounds):
        victim = subject.names[number % len(subject.names)]
        tell(f"{measured.subject}: round {number + 1} of {rounds}, node {victim}")
        for fault, spent in one(subject, victim):
            measured.times_ms.setdefault(fault, []).append(spent / 1000)


def _round(subject: Subject, victim: str) -> Iterator[tuple[str, int]]:
    names = list(subject.names)
    others = [name for name in names if name != victim]
    subject.settle()
    yield "stop", _timed(subject, victim, subject.stop, others)
    yield "cont", _timed(subject, victim, subject.cont, names)
    subject.settle()
    yield "kill", _timed(subject, victim, subject.kill, others)
    yield "restart", _timed(subject, victim, subject.restart, names)
    subject.settle()
    yield "terminate", _timed(subject, victim, subject.terminate, others)
    subject.restart(victim)


def _cable_round(subject: Cabled, victim: str) -> Iterator[tuple[str, int]]:
    names = list(subject.names)
    subject.settle()
    yield "cut", _timed(subject, victim, subject.cut, [name for name in names if name != victim])
    yield "mend", _timed(subject, victim, subject.mend, names)


def _timed(subject: Subject, victim: str, act: Callable[[str], None], members: list[str]) -> int:
    """µs from the act until everybody but the victim is told of a view of ``members``."""
    with subject.watch([name for name in subject.names if name != victim]) as watch:
        began = boot_us()
        act(victim)
        return watch.until(members, TIMEOUT_S) - began
