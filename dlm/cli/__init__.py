"""The program ``dlm``: looking at locks, and running commands under them.

``dlm run`` is dispatched here, before click and rich are imported: cron jobs and scripts pay its start-up
time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with ``argv`` (default: the process's); returns or exits with the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    url, rest = _leading_url(arguments)
    if rest and rest[0] == "run":
        from dlm.cli.run import main as run

        return run(rest[1:], url)
    from dlm.cli.commands import main as commands

    return commands(arguments)


def _leading_url(arguments: list[str]) -> tuple[str | None, list[str]]:
    """``--url`` may stand before the command as well; its value and what follows."""
    match arguments:
        case ["--url" | "-u", url, *rest]:
            return url, rest
        case [first, *rest] if first.startswith("--url="):
            return first.removeprefix("--url="), rest
    return None, arguments
