"""The ``vsync`` command: look at a cluster from one of its hosts.

Standard output carries data only; messages go to stderr. Exit codes: 0 fine, 1 error, 2 usage, 3 reachable but not
primary, 4 daemon unreachable.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["EXIT_ERROR", "EXIT_NOT_PRIMARY", "EXIT_UNREACHABLE", "main", "run"]

EXIT_ERROR = 1
EXIT_NOT_PRIMARY = 3
EXIT_UNREACHABLE = 4


def main() -> NoReturn:
    """The program."""
    sys.exit(run())


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's) and return its exit code."""
    import click

    from vsync.cli.commands import cli
    from vsync.errors import NotConnected, VsyncError

    try:
        result = cli.main(None if argv is None else list(argv), prog_name="vsync", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as e:
        e.show()
        return e.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except NotConnected as e:
        click.echo(f"vsync: {e}", err=True)
        return EXIT_UNREACHABLE
    except TimeoutError:
        click.echo("vsync: the daemon does not answer; is it stopped or overloaded?", err=True)
        return EXIT_UNREACHABLE
    except VsyncError as e:
        click.echo(f"vsync: {e}", err=True)
        return EXIT_ERROR
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Keep Python from flushing into it once more at exit.
        sys.stdout = None
        return 0
