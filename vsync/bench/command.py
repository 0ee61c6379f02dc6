"""The ``vsync bench`` commands: run, show, and say on what machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from vsync.bench import cables, corosync, netns
from vsync.bench.link_cut import summary, watch_a_cut
from vsync.bench.local import CabledSubject, LocalSubject, transports
from vsync.bench.options import Options, Tell
from vsync.bench.ordering import OrderingOptions, run
from vsync.bench.plot import write_svg
from vsync.bench.rows import WHATS, Row, machine, print_rows, to_json
from vsync.bench.subject import NotSeen
from vsync.bench.view_change import CABLE_FAULTS, FAULTS, Measured, measure, measure_cables
from vsync.cli.table import show
from vsync.errors import VsyncError

__all__ = ["ordering", "report", "view_change"]

Asked = TypeVar("Asked", bound=Options)

#: What is shown of ``summary``.
LINK_ROWS = {
    "longest_ms": "longest time from submission to delivery, ms",
    "before_ms": "the same before the cut, ms",
    "messages": "messages sent",
    "wrong": "deliveries lost or out of order",
    "view_changes": "view changes",
}


def ordering(options: OrderingOptions, plot: Path | None, as_json: bool, tell: Tell) -> int:
    """``vsync bench``. Raises ``VsyncError``; returns the exit code."""
    return report("ordering", "vsync", options, run, plot, as_json, tell)


def report(
    bench: str,
    program: str,
    options: Asked,
    measure: Callable[[Asked, Tell], tuple[list[Row], dict[str, str]]],
    plot: Path | None,
    as_json: bool,
    tell: Tell,
) -> int:
    """Measure, print it, and draw it if that is wanted; the exit code. Raises ``VsyncError`` for what ``program``
    does not measure, and if the picture cannot be written.
    """
    wrong = [what for what in options.only if what not in WHATS[program]]
    if wrong:
        raise VsyncError(f"--only {wrong[0]}: {program} bench measures {', '.join(WHATS[program])}")
    known = known_transports(options.transports)
    rows, absent = measure(replace(options, transports=tuple(options.transports) or known), tell)
    if plot is not None:
        write_svg(rows, f"{bench}, {options.rounds} rounds: how much better than the peer", plot)
    if as_json:
        print(to_json(bench, rows, options.rounds, absent))
    else:
        print_rows(rows, options.rounds, absent)
    return 0


def known_transports(wanted: Sequence[str]) -> tuple[str, ...]:
    """The transports of this release. Raises ``VsyncError`` if another one is wanted."""
    known = transports()
    unknown = [transport for transport in wanted if transport not in known]
    if unknown:
        raise VsyncError(f"transport {unknown[0]} is not available here; there is {', '.join(known)}")
    return tuple(known)


def view_change(
    rounds: int, wanted: Sequence[str], peers: bool, as_json: bool, tell: Tell
) -> int:
    """``vsync bench view-change``. Raises ``VsyncError``; returns the exit code."""
    known = known_transports(wanted)
    no_namespaces = netns.missing()
    absent = corosync.missing() if peers else "not asked for"
    measured: list[Measured] = []
    try:
        for transport in wanted or known:
            measured.append(_own(transport, rounds, not no_namespaces, tell))
        if not absent:
            with corosync.CorosyncSubject() as peer:
                measured.append(measure("corosync", peer, rounds, tell))
                measure_cables(measured[-1], peer, rounds, tell)
    except NotSeen as e:
        raise VsyncError(str(e)) from e
    _print(measured, rounds, {"cables": no_namespaces, "corosync": absent}, as_json)
    return 0


def _own(transport: str, rounds: int, namespaces: bool, tell: Tell) -> Measured:
    with LocalSubject(transport) as subject:
        measured = measure(f"vsyncd {transport}", subject, rounds, tell)
    if namespaces:
        with CabledSubject(transport) as subject:
            measure_cables(measured, subject, rounds, tell)
    for number in range(rounds):
        tell(f"{measured.subject}: one of two links, cut {number + 1} of {rounds}")
        with (cables.namespaces if namespaces else cables.relays)(transport) as (cluster, links):
            measured.link_cuts.append(watch_a_cut(cluster, links))
    return measured


def _print(measured: Sequence[Measured], rounds: int, absent: Mapping[str, str], as_json: bool) -> None:
    where = machine()
    if as_json:
        results = [m.to_json() for m in measured]
        answer: dict[str, Any] = {"v": 1, "bench": "view-change", "rounds": rounds, **where, "results": results}
        print(json.dumps({**answer, **{what: why or "measured" for what, why in absent.items()}}, indent=2))
        return
    columns = [m.subject for m in measured]
    rows = [(text, *(_ms(m.median(fault)) for m in measured)) for fault, text in (FAULTS | CABLE_FAULTS).items()]
    show((f"MEDIAN OF {rounds}, MS", *columns), rows)
    print()
    cuts = [summary(m.link_cuts) if m.link_cuts else {} for m in measured]
    show(
        (f"ONE OF TWO LINKS CUT, {rounds} TIMES", *columns),
        [(text, *(_cell(cut.get(key)) for cut in cuts)) for key, text in LINK_ROWS.items()],
    )
    print(f"3 nodes, default timers, {where['cpus']} CPUs, Python {where['python']}")
    for what, why in absent.items():
        if why:
            print(f"{what}: not measured: {why}")


def _cell(value: float | int | None) -> str:
    return "-" if value is None else str(value)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
