"""``recovery``: a node with many locks is killed. How long after the horizon, before which nobody may be told of a
grant, do survivors have the lock they wait for; and how long do others pause? The floor is the death of a node with
two locks in the same run (``dlm.bench.scale``).
"""

from __future__ import annotations

from collections.abc import Iterator

from dlm.bench.scale import Scale
from vsync.bench.options import Options, Tell
from vsync.bench.rows import Row, rows_of, sample_ms

__all__ = ["recovery", "recovery_rows"]

ROUNDS = 3  #: at most: each node dies once
LOCKS = (10_000,)
ALL_LOCKS = (10_000, 100_000, 1_000_000)
FLOOR = "2 locks"
CASES = {"late": "{locks} locks, after the horizon", "pause": "{locks} locks, pause of others, private"}


def recovery(transport: str, options: Options, tell: Tell) -> Iterator[Row]:
    """The rows. Raises ``VsyncError``."""
    for locks in ALL_LOCKS if options.full else LOCKS:
        bench = Scale(locks, 0, lambda text: tell(f"{transport}: recovery: {text}"), transport)
        bench.purge(min(options.rounds, ROUNDS))
        yield from recovery_rows(bench, transport)


def recovery_rows(bench: Scale, transport: str) -> Iterator[Row]:
    """What was measured."""
    for figure, case in CASES.items():
        described = {
            "what": "recovery", "case": case.format(locks=bench.locks), "nodes": 3, "transport": transport,
            "via": "vsyncd", "size": None, "callers": None, "unit": "ms",
        }  # fmt: skip
        yield from rows_of(described, sample_ms(bench.found[figure]), {FLOOR: sample_ms(bench.floors[figure])})
