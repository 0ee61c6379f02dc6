"""``kill-to-grant`` and ``join-pause``: the figures of ``dlm.bench.failover`` as rows, each beside its floor.

Who waits for a lock of a node that was killed waits for the lease; where nobody has to, the floor is the bare hop.
The longest pause of those who lock and unlock all the time stands beside that of a calm time in the same run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dlm.bench.failover import LEASE_MS, Failover
from vsync.bench.hop import BareHop
from vsync.bench.options import Options, Tell
from vsync.bench.rows import Row, rows_of, sample_ms

__all__ = ["OUTAGES", "outage_rows", "outages"]

ROUNDS = 3  #: at most: each node is hurt once, and a round takes ten seconds
HOPS = 400
LEASE, HOP, CALM = "the lease", "bare hop", "calm"


class Outage(NamedTuple):
    """What is shown of one of the ``FIGURES`` of ``dlm.bench.failover``."""

    what: str
    case: str
    floor: str


OUTAGES = {
    "kill": Outage("kill-to-grant", "held by the dead node", LEASE),
    "kill free": Outage("kill-to-grant", "held by nobody", LEASE),
    "stable held": Outage("kill-to-grant", "stable, held by the dead node", LEASE),
    "stable free": Outage("kill-to-grant", "stable, held by nobody", HOP),
    "stable handed": Outage("kill-to-grant", "stable, handed on by a survivor", HOP),
    "leave": Outage("kill-to-grant", "clean stop instead of kill", HOP),
    "kill private": Outage("kill-to-grant", "pause of others, private", CALM),
    "join private": Outage("join-pause", "private", CALM),
    "join shared": Outage("join-pause", "shared", CALM),
}


def outages(transport: str, options: Options, tell: Tell) -> Iterator[Row]:
    """The rows; ``answer = "stable"`` if all is wanted. Raises ``VsyncError``."""
    bench = Failover(lambda text: tell(f"{transport}: {text}"), transport)
    rounds = min(options.rounds, ROUNDS)
    bench.default(rounds)
    if options.full and options.wants("kill-to-grant"):
        bench.stable(rounds)
    with BareHop() as hop:
        hop_ms = hop.latency(64, HOPS).value / 1000
    for row in outage_rows(bench, transport, hop_ms):
        if options.wants(row.what):
            yield row


def outage_rows(bench: Failover, transport: str, hop_ms: float) -> Iterator[Row]:
    """All that was measured."""
    for figure, outage in OUTAGES.items():
        if times := bench.times.get(figure):
            floors = {LEASE: [LEASE_MS], HOP: [hop_ms], CALM: bench.floors.get(figure, [])}[outage.floor]
            described = {
                "what": outage.what, "case": outage.case, "nodes": 3, "transport": transport, "via": "vsyncd",
                "size": None, "callers": None, "unit": "ms",
            }  # fmt: skip
            yield from rows_of(described, sample_ms(times), {outage.floor: sample_ms(floors)})
