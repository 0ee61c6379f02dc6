"""``python -m dlm.testing.soak --seconds 60 --seed 7``: soak a cluster of real daemons.

Exit codes: 0 everything held, 1 something broke (the folder with the evidence is kept and named), 2 usage, 130
interrupted.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dlm.testing.soak.run import Plan, Soak
from vsync.errors import VsyncError


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    args = _parse(argv)
    folder = Path(args.folder or tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        seed=args.seed,
        rounds=args.rounds,
        seconds=args.seconds,
        nodes=args.nodes,
        clients=args.clients,
        names=args.names,
        fast=args.fast,
        rough=args.rough,
    )
    sizes = f"{plan.clients} clients, {plan.names} names, {plan.nodes} nodes"
    print(f"seed {plan.seed}: {sizes} in {folder}", flush=True)
    try:
        result = Soak(plan, folder).run()
    except VsyncError as error:
        print(f"BROKEN: {error}\nevidence: {folder}", flush=True)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; what there is lies in {folder}", flush=True)
        return 130
    print("\n".join(result.lines()), flush=True)
    if not result.good:
        print(f"evidence: {folder}", flush=True)
        return 1
    if args.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dlm.testing.soak",
        description="Real vsyncd processes, real clients that count under locks, nodes killed at random; judged.",
        epilog="Exit codes: 0 everything held, 1 something broke, 2 usage.",
    )
    parser.add_argument("--seed", type=int, default=1, help="of clients and faults (default 1)")
    parser.add_argument("--rounds", type=int, help="increments in all (default 10000; any number with --seconds)")
    parser.add_argument("--seconds", type=float, help="stop after so long")
    parser.add_argument("--nodes", type=int, default=3, help="default 3")
    parser.add_argument("--clients", type=int, default=4, help="client processes (default 4)")
    parser.add_argument("--names", type=int, default=50, help="locks, each with its counter (default 50)")
    parser.add_argument("--fast", action="store_true", help="short timers: more view changes in less time")
    parser.add_argument("--rough", action="store_true", help="faults on top of each other, often to most nodes")
    parser.add_argument("--folder", help="work here and keep everything (default: a temporary one)")
    args = parser.parse_args(argv)
    if args.rounds is None:
        args.rounds = 10_000 if args.seconds is None else sys.maxsize
    if min(args.nodes, args.clients, args.names, args.rounds) < 1:
        parser.error("--nodes, --clients, --names and --rounds must be at least 1")
    return args


if __name__ == "__main__":
    sys.exit(main())
