"""The command line of the simulator, shared by ``python -m vsync.testing`` and ``python -m dlm.testing``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from vsync.testing import replay
from vsync.testing.hunt import Plugins, bounds, coverage, hunt
from vsync.testing.options import SECOND, Options, draw
from vsync.testing.run import Result, run
from vsync.testing.shrink import parse, shrink, spell
from vsync.testing.story import story

__all__ = ["main"]


def main(argv: Sequence[str] | None, prog: str, plugins: Plugins) -> int:
    """Run seeds. Returns 0 if every property held, 1 if one broke (and tells the story), 2 on wrong
    arguments.

    ``plugins(seed)`` makes fresh plug-ins for a run.
    """
    args = _parse(argv, prog)
    if args.replay:
        return replay.main(args.replay, 10**9 if args.trace else 60)
    chaos = None if args.seconds is None else round(args.seconds * SECOND)
    if args.seeds is not None:
        return _hunt(args, prog, plugins, chaos)
    options = args.options or draw(args.seed, args.nodes, chaos)
    print(f"seed {options.seed}, options: {' '.join(options.lines())}", flush=True)
    result = run(options, plugins(options.seed), None if args.trace else 4_000)
    if args.trace:
        print("\n".join(story(result.trace, options.nodes, 10**9, frames=True)))
    if args.coverage:
        print("\n".join(coverage(result.fired)))
    if result.violation is None:
        print(result.line(), flush=True)
        return 0
    again = f"--options {spell(options)}" if args.options else f"--seed {args.seed} --nodes {args.nodes}"
    if args.shrink is not None:
        result = shrink(options, plugins, args.shrink, lambda line: print(f"shrink: {line}", flush=True))
        again = f"--options {spell(result.options)}"
    _tell(result, prog, again)
    return 1


def _hunt(args: argparse.Namespace, prog: str, plugins: Plugins, chaos: int | None) -> int:
    """Many seeds; the story of the first that fails."""
    until = None if args.budget_seconds is None else time.monotonic() + args.budget_seconds
    total = hunt(
        range(args.seeds[0], args.seeds[1] + 1),
        args.nodes,
        plugins,
        chaos=chaos,
        jobs=args.jobs,
        until=until,
        keep_going=args.keep_going,
        told=(lambda line: print(line, flush=True)) if args.verbose else None,
    )
    if args.coverage:
        print("\n".join(coverage(total.fired)))
    if args.bounds:
        print("\n".join(bounds(total.measured)))
    if total.failed:
        seed = total.failed[0]
        options = draw(seed, args.nodes, chaos)
        print(f"seed {seed}, options: {' '.join(options.lines())}")
        _tell(run(options, plugins(seed)), prog, f"--seed {seed} --nodes {args.nodes}")
    print(total.line())
    return 1 if total.failed else 0


def _parse(argv: Sequence[str] | None, prog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m {prog}",
        description="Whole clusters under a virtual clock: chaos, healing, and checkers after every event.",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=int, default=1, help="run this seed (default 1)")
    which.add_argument("--seeds", type=_range, metavar="A..B", help="run the seeds A to B, both included")
    which.add_argument("--options", type=_options, metavar="K=V,...", help="a run as --shrink spells it")
    which.add_argument("--replay", nargs="+", metavar="FILE", help="run dumps of the flight recorder again")
    parser.add_argument("--nodes", type=int, default=5, help="number of nodes, 1 to 16 (default 5)")
    parser.add_argument("--seconds", type=float, help="virtual seconds of chaos (default: drawn from the seed)")
    parser.add_argument("--budget-seconds", type=float, help="start no further seed after so much real time")
    parser.add_argument("--jobs", type=int, default=1, help="with --seeds: so many processes (default 1)")
    parser.add_argument("--keep-going", action="store_true", help="with --seeds: go on after a failure")
    parser.add_argument("--coverage", action="store_true", help="print which frames met a nested fault")
    parser.add_argument("--bounds", action="store_true", help="with --seeds: how close the runs came to each bound")
    parser.add_argument(
        "--shrink",
        type=float,
        nargs="?",
        const=60.0,
        metavar="SECONDS",
        help="with --seed: look for a shorter run that fails alike, for so much real time (default 60)",
    )
    parser.add_argument("--trace", action="store_true", help="print every event, frames too")
    parser.add_argument("--verbose", action="store_true", help="with --seeds: one line per seed")
    args = parser.parse_args(argv)
    if not 1 <= args.nodes <= 16:
        parser.error("--nodes must be between 1 and 16")
    if args.jobs < 1:
        parser.error("--jobs must be at least 1")
    return args


def _options(text: str) -> Options:
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _range(text: str) -> tuple[int, int]:
    first, separator, last = text.partition("..")
    try:
        low, high = int(first), int(last)
    except ValueError:
        low, high = 1, 0
    if not separator or low > high:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range like 1..200")
    return low, high


def _tell(result: Result, prog: str, again: str) -> None:
    """The story of a broken property, and how to see it again."""
    print("\n".join(story(result.trace, result.options.nodes)))
    print()
    print(f"BROKEN {result.violation}")
    print(result.line())
    print(f"again: python -m {prog} {again}", flush=True)
