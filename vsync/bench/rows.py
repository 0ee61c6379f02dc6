"""What a bench found: samples of one measurement, and rows of a report that people and programs read.

A row never stands alone: beside its value is that of a peer or of a floor (the bare hop), measured in the same run.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import Any

from vsync.cli.table import show

__all__ = ["WHATS", "Row", "Sample", "machine", "middle", "print_rows", "rows_of", "sample", "sample_ms", "to_json"]

#: What can be measured, by the program that does it. The rows of "matrix", "growth" and "busy-thread" are of
#: lock-private and lock-shared.
WHATS = {
    "vsync": ("order-latency", "order-throughput", "order-after-idle", "idle-cpu"),
    "dlm": (
        "lock-private", "lock-cached", "lock-shared", "lock-multi", "bast-pingpong", "kill-to-grant", "join-pause",
        "recovery", "memory", "matrix", "growth", "busy-thread",
    ),
}  # fmt: skip

COLUMNS = (
    "WHAT", "CASE", "NODES", "NET", "VIA", "SIZE", "CALLERS", "VALUE", "UNIT", "P50", "P99", "P99.9", "CPU/OP",
    "MSG/OP", "PEER", "ITS VALUE", "RATIO",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement. ``value`` is in the unit of its row; of the rest, what there is.

    ``p50_us`` .. ``p999_us``: of single operations. ``cpu_us``: of all our processes, by operation.
    ``messages``: ordered messages of all nodes, by operation.
    """

    value: float
    p50_us: float | None = None
    p99_us: float | None = None
    p999_us: float | None = None
    cpu_us: float | None = None
    messages: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report. ``ratio`` is ``value / peer_value``: same unit, same size, as many callers."""

    what: str
    case: str
    nodes: int
    transport: str | None
    via: str | None
    size: int | None
    callers: int | None
    value: float
    unit: str
    p50_us: float | None = None
    p99_us: float | None = None
    p999_us: float | None = None
    cpu_us_per_op: float | None = None
    messages_per_op: float | None = None
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None


def sample(times_us: Sequence[float], value: float | None = None, **more: float | None) -> Sample:
    """Of the times of single operations, one at least; ``value``: their median, if it is not given."""
    ordered = sorted(times_us)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]

    middle_us = median(ordered)
    return Sample(middle_us if value is None else value, middle_us, at(0.99), at(0.999), **more)


def sample_ms(times_ms: Sequence[float]) -> Sample:
    """The same of milliseconds, whose median is the value. Who came before time, by less than clocks agree, was not
    late: less than 0 is 0.
    """
    late = [max(0.0, each) for each in times_ms]
    return sample([each * 1000 for each in late], value=median(late))


def middle(samples: Sequence[Sample]) -> Sample:
    """The median of several measurements, field by field."""
    found: dict[str, Any] = {}
    for each in fields(Sample):
        known = [value for value in (getattr(one, each.name) for one in samples) if value is not None]
        found[each.name] = median(known) if known else None
    return Sample(**found)


def rows_of(row: Mapping[str, Any], own: Sample, peers: Mapping[str, Sample]) -> list[Row]:
    """One row for each peer, or one if there is none. ``row``: the fields of ``Row`` that say what it is."""
    figures: dict[str, Any] = {
        "value": _short(own.value),
        "p50_us": _short(own.p50_us),
        "p99_us": _short(own.p99_us),
        "p999_us": _short(own.p999_us),
        "cpu_us_per_op": _short(own.cpu_us),
        "messages_per_op": _short(own.messages),
    }
    if not peers:
        return [Row(**row, **figures)]
    return [
        Row(**row, **figures, peer=peer, peer_value=_short(of.value), ratio=_ratio(own.value, of.value))
        for peer, of in peers.items()
    ]


def _ratio(value: float, peer_value: float) -> Any:
    """Beside nothing there is no ratio."""
    return _short(value / peer_value) if peer_value else None


def _short(value: float | None) -> Any:
    """Four figures: more are noise."""
    return None if value is None else float(f"{value:.4g}")


# -- reports ---------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Where it was measured."""
    return {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}


def to_json(bench: str, rows: Iterable[Row], rounds: int, absent: Mapping[str, str]) -> str:
    """One object; ``absent``: peers that were not measured, and why."""
    results = [asdict(row) for row in rows]
    head = {"v": 1, "bench": bench, "rounds": rounds, **machine()}
    return json.dumps({**head, "absent": dict(absent), "results": results}, indent=2)


def print_rows(rows: Sequence[Row], rounds: int, absent: Mapping[str, str]) -> None:
    """A table of those columns that have something in them; times in µs."""
    cells = [[_cell(value) for value in asdict(row).values()] for row in rows]
    used = [at for at in range(len(COLUMNS)) if any(row[at] != "-" for row in cells)]
    show([COLUMNS[at] for at in used], [[row[at] for at in used] for row in cells])
    where = machine()
    print(f"median of {rounds}; times in µs; {where['cpus']} CPUs, Python {where['python']}")
    for peer, why in absent.items():
        print(f"{peer}: not measured: {why}")


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"
    return str(value)
