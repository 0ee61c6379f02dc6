"""The ``dlm bench`` command: run, show, and say on what machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dlm.bench.locking import Locking, Options
from vsync.bench.command import check_only, known_transports, report
from vsync.bench.rows import Row

__all__ = ["locking"]


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
    for transport in options.transports:
        with Locking(transport, options, tell) as bench:
            absent |= bench.absent
            rows += bench.rows()
    report("locking", rows, rounds, absent, plot, as_json)
    return 0
