"""``python -m dlm.testing.storm --nodes 5 --seconds 120 --seed 7``: a cluster in trouble, judged.

Exit codes: 0 everything held, 1 something broke (the folder with the evidence is kept and named), 2 usage, 130
interrupted.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from dlm.testing.linear import Verdict
from dlm.testing.storm.faults import FAULTS
from dlm.testing.storm.run import Plan, Storm
from vsync.bench.netns import missing
from vsync.errors import VsyncError


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    args = _parse(argv)
    why = "as asked" if args.loopback else missing()
    plan = Plan(
        seed=args.seed, nodes=args.nodes, clients=args.clients, fast=args.fast, namespaces=not why, pace=args.pace,
        stable=args.stable, transport=args.transport,
    )  # fmt: skip
    if why and any(FAULTS[name].network for name in args.fault):
        print(f"storm: these faults need network namespaces ({why})", file=sys.stderr)
        return 2
    folder = Path(args.folder or tempfile.mkdtemp(prefix="storm-"))
    folder.mkdir(parents=True, exist_ok=True)
    place = "in network namespaces" if plan.namespaces else f"on the loopback ({why})"
    print(f"seed {plan.seed}: {plan.nodes} nodes {place}, {plan.clients} clients, in {folder}", flush=True)
    began = time.monotonic()
    try:
        with Storm(plan, folder) as storm:
            for name in args.fault:
                storm.strike(name)
            if not args.fault:
                storm.blow(args.seconds)
            verdict = storm.finish()
    except VsyncError as error:
        print(f"BROKEN: {error}\nevidence: {folder}", flush=True)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; what there is lies in {folder}", flush=True)
        return 130
    _tell(storm, verdict, time.monotonic() - began)
    if not verdict.good:
        print(f"evidence: {folder}", flush=True)
        return 1
    if args.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _tell(storm: Storm, verdict: Verdict, seconds: float) -> None:
    faults = ", ".join(f"{count} {name}" for name, count in sorted(storm.counts.items())) or "none"
    print(f"faults       {sum(storm.counts.values())}: {faults}")
    print(f"grants       {verdict.grants} in {seconds:.0f} s, conversions {verdict.conversions}")
    print(f"not granted  {verdict.refused}; lost {verdict.lost}; of unknown outcome {verdict.unknown}")
    if verdict.good:
        print("good: linearizable, never held twice, fences rising, registers exact, everything free at the end")
    else:
        print(f"BROKEN: {len(verdict.problems)} problems\n{verdict.report()}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dlm.testing.storm",
        description="Real daemons in network namespaces, real clients, faults of every kind; every history judged.",
        epilog="Exit codes: 0 everything held, 1 something broke, 2 usage. Namespaces need root.",
    )
    parser.add_argument("--seed", type=int, default=1, help="of clients and faults (default 1)")
    parser.add_argument("--seconds", type=float, default=60.0, help="begin no fault after so long (default 60)")
    parser.add_argument("--nodes", type=int, default=3, help="default 3")
    parser.add_argument("--clients", type=int, default=5, help="client processes (default 5)")
    parser.add_argument("--pace", type=float, default=0.01, help="mean pause of a client in seconds (default 0.01)")
    parser.add_argument("--fast", action="store_true", help="short timers: more trouble in less time")
    parser.add_argument("--stable", action="store_true", help='with answer = "stable"')
    parser.add_argument("--transport", default="zmq", choices=("zmq", "udp"), help="default zmq")
    parser.add_argument("--loopback", action="store_true", help="without a network that can be cut; needs no root")
    parser.add_argument(
        "--fault", action="append", default=[], choices=list(FAULTS), help="just these, in this order"
    )
    parser.add_argument("--folder", help="work here and keep everything (default: a temporary one)")
    args = parser.parse_args(argv)
    if args.nodes < 3 or args.clients < 1 or args.pace <= 0:
        parser.error("--nodes must be at least 3, --clients at least 1, --pace more than 0")
    return args


if __name__ == "__main__":
    sys.exit(main())
