"""``dlm ls``, ``dlm show``, ``dlm space``: tables for people, JSON with the same content for programs.

Exit codes: 0; 1 error, or nothing found; 2 usage; 3 the node is not in the primary component; 4 daemon
unreachable.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import click

import dlm
from dlm.answers import name_text
from dlm.cli.bench import bench
from dlm.cli.failures import failures, recovered
from dlm.cli.fence import fence_ack, fence_check, fences
from dlm.cli.past import history
from dlm.cli.record import record, replay
from dlm.cli.space import space
from dlm.cli.table import print_table, printable
from dlm.runner import UNREACHABLE

__all__ = ["main"]

SCHEMA = 1  #: "v" in JSON
NO_QUORUM = 3

COLUMNS = ("RESOURCE", "MODE", "HOLDERS", "WAITERS", "FENCE", "VALUE", "STATE", "OWNER")


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    try:
        code = program.main(list(arguments), prog_name="dlm", standalone_mode=False)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130
    except dlm.NoQuorum as error:
        return _fail(str(error), NO_QUORUM)
    except dlm.NotConnected as error:
        return _fail(f"{error}; `vsync demo --keep` starts a cluster to try", UNREACHABLE)
    except dlm.DLMError as error:
        return _fail(str(error), 1)
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads: say nothing more, not even at exit
        return 1
    return int(code or 0)


def _fail(text: str, code: int) -> int:
    click.echo(f"dlm: {text}", err=True)
    return code


@click.group(epilog="dlm run NAME -- CMD runs a command under a lock; see dlm run --help.")
@click.option("--url", "-u", help="The daemon; default $VSYNC_URL, else unix:///run/vsync/vsyncd.sock.")
@click.version_option(package_name="vsync", prog_name="dlm")
@click.pass_context
def program(context: click.Context, url: str | None) -> None:
    """Locks of the cluster, as this host's node sees them."""
    context.obj = url


program.add_command(bench)
program.add_command(space)
program.add_command(history)
program.add_command(failures)
program.add_command(recovered)
program.add_command(fences)
program.add_command(fence_ack)
program.add_command(fence_check)
program.add_command(record)
program.add_command(replay)

#: Who looks makes no lockspace.
_in_space = click.option(
    "--space", "space_name", default="default", metavar="SPACE", help="The lockspace; see dlm space ls."
)


@program.command("ls")
@click.argument("prefix", default="")
@_in_space
@click.option("--json", "as_json", is_flag=True, help="The same content for programs.")
@click.pass_obj
def ls(url: str | None, prefix: str, space_name: str, as_json: bool) -> int:
    """List names with locks, those that begin with PREFIX."""
    with dlm.connect(url, space=space_name, create=False) as locks:
        rows, waiting = locks.ls(prefix), locks.waiting()
    if as_json:
        plain = [each.to_json() for each in waiting]
        _print_json({"v": SCHEMA, "locks": [row.to_json() for row in rows], "waiting": plain})
    else:
        print_table(COLUMNS, [cells_of(row) for row in rows])
        for line in (line for each in waiting for line in each.lines()):
            click.echo(printable(line))
    return 0


@program.command("show")
@click.argument("name")
@_in_space
@click.option("--why", "explain", is_flag=True, help="Who is blocked by whom, and what those wait for in turn.")
@click.option("--json", "as_json", is_flag=True, help="The same content for programs.")
@click.pass_obj
def show(url: str | None, name: str, space_name: str, explain: bool, as_json: bool) -> int:
    """Show who holds NAME and who waits for it, in order. Exit code 1 if nobody does."""
    with dlm.connect(url, space=space_name, create=False) as locks:
        if explain:
            return _print_why(locks.why(name), as_json)
        info = locks.show(name)
    if as_json:
        _print_json({"v": SCHEMA, "lock": None if info is None else info.to_json()})
    elif info is None:
        click.echo(f"dlm: nobody holds or waits for {name!r}", err=True)
    else:
        _print_lock(info)
    return 1 if info is None else 0


# `run` is dispatched before click is imported; this entry is for --help.
@program.command("run", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1)
@click.pass_obj
def run(url: str | None, arguments: tuple[str, ...]) -> int:
    """Run a command while holding a lock: dlm run NAME -- CMD."""
    from dlm.cli.run import main as run_main

    return run_main(arguments, url)


def _print_why(why: dlm.Why, as_json: bool) -> int:
    if as_json:
        _print_json({"v": SCHEMA, "why": why.to_json()})
    else:
        click.echo("\n".join(map(printable, why.lines())))
    return 1 if why.state == "free" else 0


def _print_json(data: dict[str, Any]) -> None:
    click.echo(json.dumps(data))


def cells_of(row: dlm.LockInfo) -> tuple[str, ...]:
    """The columns of one name."""
    waiting = None if row.waiters is None else (row.converting or ()) + row.waiters
    return (
        printable(name_text(row.name)),
        row.mode.name if row.mode is not None else "-",
        _people(row.holders),
        _people(waiting),
        str(row.fence or "-"),
        "-" if row.value_valid is None else "valid" if row.value_valid else "invalid",
        row.state,
        "-" if row.owner is None else str(row.owner),
    )


def _people(queue: tuple[dlm.Holder, ...] | None) -> str:
    if queue is None:
        return "?"  # the owner alone knows
    return " ".join(str(one) for one in queue) or "-"


def _print_lock(info: dlm.LockInfo) -> None:
    cells = dict(zip(COLUMNS, cells_of(info), strict=True))
    for title in ("RESOURCE", "MODE", "FENCE", "VALUE", "STATE", "OWNER"):
        click.echo(f"{title.lower() + ':':<10} {cells[title]}")
    if info.holders is None:
        click.echo(f"queues:    known to node {info.owner} alone")
        return
    rows = []
    for queue, members in (
        ("held", info.holders),
        ("converting", info.converting or ()),
        ("waiting", info.waiters or ()),
    ):
        rows += [(queue, *_person(one)) for one in members]
    click.echo("")
    print_table(("QUEUE", "NODE", "PID", "PROGRAM", "MODE", "ASKED", "FENCE"), rows)


def _person(one: dlm.Holder) -> tuple[str, ...]:
    return (
        str(one.node),
        str(one.pid or "-"),
        printable(one.program) or "-",
        one.mode.name if one.mode is not None else "-",
        one.asked.name if one.asked is not None else "-",
        str(one.fence or "-"),
    )
