"""The ``vsync bench`` commands: run, show, and say on what machine."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from typing import Any

from vsync.bench import corosync
from vsync.bench.local import LocalSubject, transports
from vsync.bench.subject import NotSeen
from vsync.bench.view_change import FAULTS, Measured, measure
from vsync.cli.table import show
from vsync.errors import VsyncError

__all__ = ["view_change"]


def view_change(
    rounds: int, wanted: Sequence[str], peers: bool, as_json: bool, tell: Callable[[str], None]
) -> int:
    """``vsync bench view-change``. Raises ``VsyncError``; returns the exit code."""
    known = transports()
    unknown = [transport for transport in wanted if transport not in known]
    if unknown:
        raise VsyncError(f"transport {unknown[0]} is not available here; there is {', '.join(known)}")
    measured: list[Measured] = []
    absent = corosync.missing() if peers else "not asked for"
    try:
        for transport in wanted or known:
            with LocalSubject(transport) as subject:
                measured.append(measure(f"vsyncd {transport}", subject, rounds, tell))
        if not absent:
            with corosync.CorosyncSubject() as peer:
                measured.append(measure("corosync", peer, rounds, tell))
    except NotSeen as e:
        raise VsyncError(str(e)) from e
    _print(measured, rounds, absent, as_json)
    return 0


def _print(measured: Sequence[Measured], rounds: int, absent: str, as_json: bool) -> None:
    machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}
    if as_json:
        results = [m.to_json() for m in measured]
        answer: dict[str, Any] = {"v": 1, "bench": "view-change", "rounds": rounds, **machine, "results": results}
        print(json.dumps({**answer, "corosync": absent or "measured"}, indent=2))
        return
    rows = [
        (text, *(_ms(m.median(fault)) for m in measured)) for fault, text in FAULTS.items()
    ]  # fmt: skip
    show(("MEDIAN OF " + str(rounds) + ", MS", *(m.subject for m in measured)), rows)
    print(f"3 nodes, default timers, {machine['cpus']} CPUs, Python {machine['python']}")
    if absent:
        print(f"corosync: not measured: {absent}")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
