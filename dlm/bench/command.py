"""The ``dlm bench`` command: run, show, and say on what machine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from dlm.bench.busy import busy_threads
from dlm.bench.growth import growth
from dlm.bench.locking import Locking
from dlm.bench.matrix import matrix
from dlm.bench.memory import memory
from dlm.bench.outages import outages
from dlm.bench.pingpong import pingpong
from dlm.bench.recovering import recovery
from vsync.bench.command import report
from vsync.bench.options import Options, Tell
from vsync.bench.rows import Row
from vsync.transport.options import TransportConfig

__all__ = ["locking"]

PAIRS = ("lock-private", "lock-cached", "lock-shared", "lock-multi")  #: what is beside peers


def locking(options: Options, plot: Path | None, as_json: bool, tell: Tell) -> int:
    """``dlm bench``. Raises ``VsyncError``; returns the exit code."""
    everywhere = bool(options.transports) or options.full
    return report("locking", "dlm", options, partial(_measured, everywhere), plot, as_json, tell)


def _measured(everywhere: bool, options: Options, tell: Tell) -> tuple[list[Row], dict[str, str]]:
    """The rows, and which peers were not measured. What has none is measured with the default transport alone,
    unless it is wanted ``everywhere``, as it takes its time.
    """
    rows: list[Row] = []
    absent: dict[str, str] = {}
    if options.wants(*PAIRS):
        for transport in options.transports:
            with Locking(transport, options, tell) as bench:
                absent |= bench.absent
                rows += bench.rows()
    for transport in options.transports if everywhere else (TransportConfig().kind,):
        rows += _others(transport, options, tell)
    return rows, absent


def _others(transport: str, options: Options, tell: Tell) -> Iterator[Row]:
    """All that has no peer but a floor."""
    if options.wants("bast-pingpong"):
        yield from pingpong(transport, options, tell)
    if options.wants("busy-thread"):
        yield from busy_threads(transport, options, tell)
    if options.wants("matrix"):
        yield from matrix(transport, options, tell)
    if options.wants("growth"):
        yield from growth(transport, options, tell)
    if options.wants("memory"):
        yield from memory(transport, tell)
    if options.wants("recovery"):
        yield from recovery(transport, options, tell)
    if options.wants("kill-to-grant", "join-pause"):
        yield from outages(transport, options, tell)
