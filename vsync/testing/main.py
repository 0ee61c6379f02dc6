"""The command line of the simulator, shared by ``python -m vsync.testing`` and ``python -m dlm.testing``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence

from vsync.testing import replay
from vsync.testing.options import SECOND, draw
from vsync.testing.plugin import Plugin
from vsync.testing.run import Result, run
from vsync.testing.story import story

__all__ = ["main"]


def main(argv: Sequence[str] | None, prog: str, plugins: Callable[[int], Sequence[Plugin]]) -> int:
    """Run seeds. Returns 0 if every property held, 1 if one broke (and tells the story), 2 on wrong
    arguments.

    ``plugins(seed)`` makes fresh plug-ins for a run.
    """
    args = _parse(argv, prog)
    if args.replay:
        return replay.main(args.replay, 10**9 if args.trace else 60)
    began, done, limits, cpu = time.monotonic(), 0, 0, 0.0
    for seed in _seeds(args):
        if args.budget_seconds is not None and time.monotonic() - began > args.budget_seconds:
            break
        options = draw(seed, args.nodes, None if args.seconds is None else round(args.seconds * SECOND))
        if args.seeds is None:
            print(f"seed {seed}, options: {' '.join(options.lines())}", flush=True)
        result = run(options, plugins(seed), None if args.trace else 4_000, args.strict)
        done, limits, cpu = done + 1, limits + (result.limit is not None), cpu + result.cpu
        if args.trace:
            print("\n".join(story(result.trace, args.nodes, 10**9, frames=True)))
        if result.violation is not None:
            _tell(result, args.nodes, prog, args.seeds is not None)
            return 1
        if args.seeds is None or args.verbose:
            print(result.line(), flush=True)
    if args.seeds is not None:
        ended = f" ({limits} ended early at a known limit)" if limits else ""
        print(f"{done} seeds, no violation{ended}, {cpu / max(done, 1):.3f} s CPU per seed")
    return 0


def _parse(argv: Sequence[str] | None, prog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m {prog}",
        description="Whole clusters under a virtual clock: chaos, healing, and checkers after every event.",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=int, default=1, help="run this seed (default 1)")
    which.add_argument("--seeds", type=_range, metavar="A..B", help="run the seeds A to B, both included")
    which.add_argument("--replay", nargs="+", metavar="FILE", help="run dumps of the flight recorder again")
    parser.add_argument("--nodes", type=int, default=5, help="number of nodes, 1 to 16 (default 5)")
    parser.add_argument("--seconds", type=float, help="virtual seconds of chaos (default: drawn from the seed)")
    parser.add_argument("--budget-seconds", type=float, help="start no further seed after so much real time")
    parser.add_argument("--trace", action="store_true", help="print every event, frames too")
    parser.add_argument("--strict", action="store_true", help="a known limit counts as a broken property")
    parser.add_argument("--verbose", action="store_true", help="with --seeds: one line per seed")
    args = parser.parse_args(argv)
    if not 1 <= args.nodes <= 16:
        parser.error("--nodes must be between 1 and 16")
    return args


def _range(text: str) -> tuple[int, int]:
    first, separator, last = text.partition("..")
    try:
        low, high = int(first), int(last)
    except ValueError:
        low, high = 1, 0
    if not separator or low > high:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range like 1..200")
    return low, high


def _seeds(args: argparse.Namespace) -> Iterator[int]:
    if args.seeds is None:
        yield args.seed
    else:
        yield from range(args.seeds[0], args.seeds[1] + 1)


def _tell(result: Result, nodes: int, prog: str, many: bool) -> None:
    """The story of a broken property, and how to see it again."""
    if many:
        print(f"seed {result.options.seed}, options: {' '.join(result.options.lines())}")
    print("\n".join(story(result.trace, nodes)))
    print()
    print(f"BROKEN {result.violation}")
    print(result.line())
    print(f"again: python -m {prog} --seed {result.options.seed} --nodes {nodes}", flush=True)
