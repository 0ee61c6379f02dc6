"""``busy-thread``: programs with a node in them, one of which has a thread that computes all the time.

- *busy thread*: awaited pairs in that program. *busy thread elsewhere*: in another one, whose ring has the node of
  the busy one in it.
- ``via`` embedded: the ring is on a thread of the program; process: in a child (``vsync.Node(process=True)``).

Beside them stand the same without a busy thread and, beside *process*, embedded. Rows of ``lock-private`` and
``lock-shared``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from dlm.bench.callers import Callers
from vsync.bench.contest import Measure, contest
from vsync.bench.options import Options, Tell
from vsync.bench.rows import Row, Sample, rows_of
from vsync.testcluster import free_ports

__all__ = ["busy_rows", "busy_threads"]

NODES = 3
PAIRS_S = 0.5
BUSY = 0  #: the program with such a thread
VIAS = ("embedded", "process")
CALM = "no busy thread"


class Case(NamedTuple):
    """What is measured, and in which of the programs."""

    what: str
    text: str
    caller: int


PRIVATE = [Case("lock-private", "awaited, busy thread", BUSY)]
SHARED = [
    Case("lock-shared", "awaited, busy thread", BUSY),
    Case("lock-shared", "awaited, busy thread elsewhere", BUSY + 1),
]


def busy_threads(transport: str, options: Options, tell: Tell) -> Iterator[Row]:
    """The rows. Raises ``VsyncError``."""
    with contextlib.ExitStack() as stack:
        tell(f"{transport}: busy-thread: programs are started")
        rings = {via: stack.enter_context(_ring(transport, via)) for via in VIAS}
        for cases in (PRIVATE, SHARED):
            for case in cases:
                entrants: dict[str, Measure] = {}
                for via, ring in rings.items():
                    entrants |= {f"{via}, {load}": _measure(ring, case.caller, load) for load in ("busy", "calm")}
                title = f"{transport}: {case.what}, {case.text}"
                found = contest(entrants, options.rounds, lambda text, title=title: tell(f"{title}: {text}"))  # type: ignore[misc]
                yield from busy_rows(transport, case, found)
            for ring in rings.values():  # two others know the name from now on
                for other in range(1, NODES):
                    ring.do("keep", other)


def busy_rows(transport: str, case: Case, found: Mapping[str, Sample]) -> Iterator[Row]:
    """Of what was found, by ``via`` and whether it was busy or calm."""
    for via in VIAS:
        peers = {CALM: found[f"{via}, calm"]}
        if via != VIAS[0]:
            peers[VIAS[0]] = found[f"{VIAS[0]}, busy"]
        described = {
            "what": case.what, "case": case.text, "nodes": NODES, "transport": transport, "via": via, "size": None,
            "callers": 1, "unit": "1/s",
        }  # fmt: skip
        yield from rows_of(described, found[f"{via}, busy"], peers)


def _ring(transport: str, via: str) -> Callers:
    ports = " ".join(map(str, free_ports(NODES)))
    return Callers([(via, transport, str(n), ports, "bench/busy") for n in range(1, NODES + 1)])


def _measure(ring: Callers, caller: int, load: str) -> Measure:
    """Pairs of one program while that other one, or the same, is busy or calm."""

    def measure() -> Sample:
        ring.do(load, BUSY)
        try:  # the CPU time would be that of the busy thread
            return replace(ring.measure("awaited", PAIRS_S, [caller]), cpu_us=None)
        finally:
            ring.do("calm", BUSY)

    return measure
