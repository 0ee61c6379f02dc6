"""``python -m vsync.bench.accelerated``: does it pay to send packets behind the token?

``ClusterConfig.accelerated`` says how many. Three embedded nodes in three processes, with a key. Under each load
the settings – 0, 4, 8, 16 packets, and 0 once more, which shows how much of a difference is noise – follow each
other in turns, in another order in each. Printed are the medians of the ratios to 0 within one turn, and in
brackets their quartiles.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from statistics import median, quantiles

from vsync.bench.load import Measurement, Nodes
from vsync.cli.table import show
from vsync.keys import ClusterKey
from vsync.transport.options import TransportConfig

__all__ = ["main"]

SETTINGS = {"0": 0, "0 again": 0, "4": 4, "8": 8, "16": 16}
NETWORKS = {"zmq": ("zmq", 0), "udp": ("udp", 0), "udp-1500": ("udp", 1500)}  #: transport, mtu
#: By size: how many messages of a sender are under way, a megabyte of the large ones; or one, for its latency.
WINDOWS = {64: (1024, 1), 1000: (512, 1), 8000: (128, 1)}
SENDERS = (1, 3)
Loading = tuple[int, int, int]  # size, senders, window
Turn = dict[str, Measurement]  # by setting


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code. Raises ``VsyncError``."""
    text = (__doc__ or "").partition(": ")[2]
    parser = argparse.ArgumentParser(prog="python -m vsync.bench.accelerated", description=text)
    parser.add_argument("-n", "--turns", type=int, default=7, help="default: 7")
    parser.add_argument("-t", "--network", choices=NETWORKS, action="append", help="default: all")
    parser.add_argument("--seconds", type=float, default=0.4, help="of each measurement; default: 0.4")
    args = parser.parse_args(argv)
    for name in args.network or NETWORKS:
        kind, mtu = NETWORKS[name]
        with Nodes(TransportConfig(kind, ClusterKey.generate(), mtu=mtu)) as nodes:
            rows: list[tuple[str, ...]] = []
            for window in (0, 1):
                for size, windows in WINDOWS.items():
                    for senders in SENDERS:
                        loading = (size, senders, windows[window])
                        rows += _rows(loading, [_turn(nodes, n, loading, args.seconds) for n in range(args.turns)])
        show((f"{name.upper()}, {args.turns} TURNS; PACKETS BEHIND THE TOKEN:", *SETTINGS), rows)
        print(flush=True)
    return 0


def _turn(nodes: Nodes, number: int, loading: Loading, seconds: float) -> Turn:
    order = list(SETTINGS)
    turn: Turn = {}
    for index in range(len(order)):
        setting = order[(index + number) % len(order)]
        nodes.set(accelerated=SETTINGS[setting])
        turn[setting] = nodes.measure(*loading, seconds)
    return turn


def _rows(loading: Loading, turns: Sequence[Turn]) -> list[tuple[str, ...]]:
    size, senders, window = loading
    title = f"{size} B, {senders} sender{'s' * (senders > 1)}, {window} under way"
    base, *others = SETTINGS
    rates = (_ratios([turn[other].rate / turn[base].rate for turn in turns]) for other in others)
    times = (_ratios([turn[other].p50_ms / turn[base].p50_ms for turn in turns]) for other in others)
    return [
        (f"{title}: messages/s", f"{median(turn[base].rate for turn in turns):.0f}", *rates),
        (f"{title}: p50 ms", f"{median(turn[base].p50_ms for turn in turns):.2f}", *times),
    ]


def _ratios(ratios: list[float]) -> str:
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return f"{median(ratios):.2f} [{low:.2f}-{high:.2f}]"


if __name__ == "__main__":
    sys.exit(main())
