"""The ``dlm bench`` command: run, show, and say on what machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dlm.bench.growth import growth
from dlm.bench.locking import Locking, Options, Tell
from dlm.bench.memory import memory
from dlm.bench.outages import outages
from dlm.bench.pingpong import pingpong
from dlm.bench.recovering import recovery
from vsync.bench.command import check_only, known_transports, report
from vsync.bench.rows import Row
from vsync.transport.options import TransportConfig

__all__ = ["locking"]

PAIRS = ("lock-private", "lock-cached", "lock-shared", "lock-multi")  #: what is beside peers


def locking(
    only: Sequence[str],
    transports: Sequence[str],
    rounds: int,
    peers: bool,
    full: bool,
    plot: Path | None,
    as_json: bool,
    tell: Callable[[str], None],
) -> int:
    """``dlm bench``. Raises ``VsyncError``; returns the exit code."""
    check_only(only, "dlm")
    options = Options(tuple(only), tuple(transports) or known_transports(()), rounds, peers, full)
    rows: list[Row] = []
    absent: dict[str, str] = {}
    if any(map(options.wants, PAIRS)):
        for transport in options.transports:
            with Locking(transport, options, tell) as bench:
                absent |= bench.absent
                rows += bench.rows()
    for transport in options.transports if transports or full else (TransportConfig().kind,):
        rows += _others(transport, options, tell)
    report("locking", rows, rounds, absent, plot, as_json)
    return 0


def _others(transport: str, options: Options, tell: Tell) -> Iterator[Row]:
    """All that has no peer but a floor: on one transport, if nothing else is asked for, as it takes its time."""
    if options.wants("bast-pingpong"):
        yield from pingpong(transport, options, tell)
    if options.wants("growth"):
        yield from growth(transport, options, tell)
    if options.wants("memory"):
        yield from memory(transport, tell)
    if options.wants("recovery"):
        yield from recovery(transport, options, tell)
    if options.wants("kill-to-grant") or options.wants("join-pause"):
        yield from outages(transport, options, tell)
