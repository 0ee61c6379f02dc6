"""``python -m vsync.bench.costs``: what frames cost the thread that handles them, and what an idle ring costs.

The first table is thread CPU time of ``send`` and ``receive``, two nodes in one process, over the loopback; what
libzmq's own thread does is not in it. The second is CPU time of the whole daemon.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from statistics import median

from vsync.bench.embedded import configs
from vsync.bench.workers import cpu_s
from vsync.cli.table import show
from vsync.clock import boot_us
from vsync.errors import VsyncError
from vsync.keys import ClusterKey
from vsync.testcluster import LocalCluster, free_ports
from vsync.transport import Transport
from vsync.transport.options import TRANSPORTS, TransportConfig, open_transport

__all__ = ["frame_us", "idle_percent", "main"]

BATCH = 20  #: frames sent before they are received: less than any queue holds
SIZES = (100, 60_000)
GIVE_UP_S = 10.0
REST_S = 2.0  #: after which a ring that was formed is idle


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code. Raises ``VsyncError``."""
    text = (__doc__ or "").partition(": ")[2]
    parser = argparse.ArgumentParser(prog="python -m vsync.bench.costs", description=text)
    parser.add_argument("-n", "--batches", type=int, default=200, help="of 20 frames each; default: 200")
    parser.add_argument("--idle-seconds", type=float, default=10.0, help="0: leave that out; default: 10")
    args = parser.parse_args(argv)
    rows = []
    for kind in TRANSPORTS:
        for key in (None, ClusterKey.generate()):
            cells = (frame_us(TransportConfig(kind, key), size, args.batches) for size in SIZES)
            rows.append((kind + ", key" * (key is not None), *(f"{send:.1f}, {get:.1f}" for send, get in cells)))
    show(("µs A FRAME: SEND, RECEIVE", *(f"{size} bytes" for size in SIZES)), rows)
    if args.idle_seconds:
        idle = [
            (f"{kind}, {links} link{'s' * (links > 1)}", f"{idle_percent(kind, links, args.idle_seconds):.2f}")
            for kind in TRANSPORTS
            for links in (1, 2)
        ]
        print()
        show(("IDLE RING OF THREE, WITH A KEY", "% OF A CPU, A NODE"), idle)
    return 0


def frame_us(options: TransportConfig, size: int, batches: int) -> tuple[float, float]:
    """Median µs of thread CPU for sending and for receiving one frame. Raises ``VsyncError``."""
    frame = b"VS".ljust(size, b".")
    sends, receptions = [], []
    with contextlib.ExitStack() as stack:
        ends = []
        for config in configs(free_ports(2)):
            ends.append(open_transport(config, options, 1))
            stack.callback(ends[-1].close)
        _connect(*ends)
        for _ in range(batches):
            began = time.thread_time_ns()
            for _ in range(BATCH):
                ends[0].send((2,), frame)
            sends.append((time.thread_time_ns() - began) / BATCH / 1000)
            receptions.append(_receive(ends[1]) / BATCH / 1000)
    return median(sends), median(receptions)


def idle_percent(kind: str, links: int, seconds: float) -> float:
    """CPU time of a daemon in a ring that has nothing to do, in percent of the time; the mean of three."""
    with LocalCluster(3, links=links, settings={"transport": kind}) as cluster:
        time.sleep(REST_S)
        pids = [node.pid for node in cluster.nodes]
        began, before = time.monotonic(), sum(map(cpu_s, pids))
        time.sleep(seconds)
        return (sum(map(cpu_s, pids)) - before) / (time.monotonic() - began) / len(pids) * 100


def _connect(*ends: Transport) -> None:
    limit = time.monotonic() + GIVE_UP_S
    while not all(row["state"] == "up" for end in ends for row in end.status()["links"]):
        if time.monotonic() > limit:
            raise VsyncError("no connection over the loopback")
        for end in ends:
            end.fire(boot_us())
            end.receive()


def _receive(end: Transport) -> int:
    """Thread CPU in ns for a whole batch, without looks that found nothing."""
    limit = time.monotonic() + GIVE_UP_S
    spent = count = 0
    while count < BATCH:
        if time.monotonic() > limit:
            raise VsyncError("frames were lost on the loopback")
        began = time.thread_time_ns()
        frames = end.receive()
        if frames:
            spent += time.thread_time_ns() - began
            count += len(frames)
    return spent


if __name__ == "__main__":
    sys.exit(main())
