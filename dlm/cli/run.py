"""``dlm run NAME -- CMD``: the command line of ``dlm.runner``. argparse, as its import is cheap."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence

from dlm.runner import LOCK_LOST, NOT_ACQUIRED, Options, Runner

__all__ = ["main", "parse"]

MODES = ("NL", "CR", "CW", "PR", "PW", "EX")

EPILOG = """
The command gets DLM_LOCK, DLM_SPACE, DLM_MODE and DLM_FENCE (the fencing token) in its environment, and its own
process group. Signals are passed on to it; while the lock is still waited for they end the wait.

exit code: that of the command, 128+n if signal n ended it; 75 lock not acquired (-E), 76 lock lost and
command killed (--lost-exit-code), 4 daemon unreachable, 2 usage, 125 own failure, 126 command cannot be
executed, 127 command not found
"""


def main(arguments: Sequence[str], url: str | None = None) -> int:
    """Run ``dlm run`` with what follows the word ``run``; returns the exit code."""
    options, own_url = parse(arguments)

    def connect():  # type: ignore[no-untyped-def]  # the type would import the client too early
        import dlm

        name = os.path.basename(options.command[0])
        return dlm.connect(own_url or url, space=options.space, name=name)

    return Runner(options, connect).run()


def parse(arguments: Sequence[str]) -> tuple[Options, str | None]:
    """The options and the URL. Exits with 2 and a message on a usage error."""
    parser = _parser()
    before, command = _split(list(arguments))
    found = parser.parse_args(before)
    if command is None:
        command = found.command
    elif found.command:
        parser.error(f"one lock name stands before --, not also {found.command[0]!r}")
    if not command:
        parser.error("no command: dlm run NAME -- CMD [ARGUMENT ...]")
    options = Options(
        name=found.name,
        space=found.space,
        command=tuple(command),
        mode="PR" if found.shared else found.mode,
        wait_s=0 if found.no_wait else found.wait,
        on_lost=found.on_lost,
        kill_after_s=found.kill_after,
        not_acquired_code=found.conflict_exit_code,
        lost_code=found.lost_exit_code,
        verbose=found.verbose,
    )
    return options, found.url


def _split(arguments: list[str]) -> tuple[list[str], list[str] | None]:
    """What stands before and behind the first ``--``."""
    if "--" not in arguments:
        return arguments, None
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dlm run",
        usage="dlm run [options] NAME -- CMD [ARGUMENT ...]",
        description="Run CMD while holding the lock NAME.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="the lock")
    add("command", nargs=argparse.REMAINDER, metavar="CMD", help="the command, not given to a shell")
    add("--url", "-u", help="the daemon; default $VSYNC_URL, else unix:///run/vsync/vsyncd.sock")
    add("--space", default="default", metavar="SPACE", help="the lockspace, made if it is missing")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--mode", type=str.upper, choices=MODES, default="EX", help="default EX: alone")
    mode.add_argument("--shared", "-s", action="store_true", help="the same as --mode PR")
    wait = parser.add_mutually_exclusive_group()
    wait.add_argument("--wait", "-w", type=_seconds, metavar="S", help="give up after S seconds; default: never")
    wait.add_argument("--no-wait", "-n", action="store_true", help="give up at once")
    add("--conflict-exit-code", "-E", type=_code, default=NOT_ACQUIRED, metavar="N", help="not acquired; 75")
    add("--lost-exit-code", type=_code, default=LOCK_LOST, metavar="N", help="lock lost; 76")
    add("--on-lost", choices=("kill", "warn", "ignore"), default="kill", help="when the lock is lost; kill")
    add("--kill-after", type=_seconds, default=5.0, metavar="S", help="SIGKILL S seconds after SIGTERM; 5")
    add("--verbose", "-v", action="store_true", help="say how long the lock was waited for")
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def _code(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 255:
        raise argparse.ArgumentTypeError(f"{text!r} is not an exit code, 0 to 255")
    return value
