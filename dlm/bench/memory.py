"""``memory``: what a name costs the daemons, with one EX lock on it: the difference of their resident sizes.

Names of 20 bytes, which one session locks. *private*: only the node of that session uses them; at the owner there
is its session's handle, too. *shared*: all nodes know them; the largest of the three daemons counts. Beside it
stands the size that is aimed at; there is no floor to measure.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

from dlm.bench.scale import PIN, Holder
from dlm.modes import EX, NL
from vsync.bench.options import Tell
from vsync.bench.rows import Row, Sample, rows_of
from vsync.errors import VsyncError
from vsync.testcluster import LocalCluster

__all__ = ["memory", "memory_rows", "rss_bytes"]

NAMES = 100_000
SIZE = 20  #: bytes of a name
WARM = 12_000  #: names before: buffers have their size then, and the history its 10,000 events
WAIT_S = 120.0
POLL_S = 0.2
TARGET = "target"
TARGETS = {"private, at the owner": 500, "private, elsewhere": 250, "shared": 1200}  #: bytes


def memory(transport: str, tell: Tell) -> Iterator[Row]:
    """The rows: one measurement, as nothing is by chance in it but what the allocator had left. Raises
    ``VsyncError``.
    """
    tell(f"{transport}: memory: {NAMES} private names")
    owner, *others = _grown(transport, shared=False)
    tell(f"{transport}: memory: {NAMES} shared names")
    shared = max(_grown(transport, shared=True))
    found = zip(TARGETS, (owner, sum(others) / len(others), shared), strict=True)
    yield from memory_rows(transport, dict(found))


def memory_rows(transport: str, found: Mapping[str, float]) -> Iterator[Row]:
    """``found``: bytes by case."""
    for case, size in found.items():
        described = {
            "what": "memory", "case": case, "nodes": 3, "transport": transport, "via": "vsyncd", "size": SIZE,
            "callers": None, "unit": "B",
        }  # fmt: skip
        yield from rows_of(described, Sample(size), {TARGET: Sample(TARGETS[case])})


def rss_bytes(pid: int) -> int:
    """Resident size of a process."""
    with open(f"/proc/{pid}/status") as status:
        line = next(line for line in status if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def _grown(transport: str, shared: bool) -> list[float]:
    """Bytes a name, by node; the first has the session."""
    with LocalCluster(3, settings={"transport": transport}, key=False) as cluster, contextlib.ExitStack() as stack:
        holder, other = (stack.enter_context(Holder(node.url)) for node in cluster.nodes[:2])
        for each in (holder, other):
            each.lock(PIN, NL)
        pin = PIN if shared else ""
        holder.lock_many([f"warm/{n:0{SIZE - 5}}" for n in range(WARM)], EX, pin)
        _until_known(cluster, WARM)
        before = [rss_bytes(node.pid) for node in cluster.nodes]
        holder.lock_many([f"name/{n:0{SIZE - 5}}" for n in range(NAMES)], EX, pin)
        form = _until_known(cluster, WARM + NAMES)
        if min(form["shared" if shared else "private"]) < NAMES:
            raise VsyncError(f"memory: these names are not {'shared' if shared else 'private'}: {form}")
        after = [rss_bytes(node.pid) for node in cluster.nodes]
    return [(now - then) / NAMES for now, then in zip(after, before, strict=True)]


def _until_known(cluster: LocalCluster, count: int) -> dict[str, list[int]]:
    """Wait until all nodes have so many names; how many of each form they have."""
    limit = time.monotonic() + WAIT_S
    while True:
        found = [cluster.status(name) for name in cluster.names]  # none of a node that has no time to answer
        states = [status["services"]["dlm"] for status in found if status]
        if len(states) == len(found) and min(state["names"] for state in states) >= count:
            return {form: [state[form] for state in states] for form in ("private", "shared")}
        if time.monotonic() > limit:
            raise VsyncError(f"memory: not all nodes have {count} names after {WAIT_S:g} s")
        time.sleep(POLL_S)
