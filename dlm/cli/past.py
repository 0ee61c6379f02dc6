"""``dlm history NAME``: what has happened to a name, and who held it at a position."""

from __future__ import annotations

import json
from collections.abc import Iterable

import click

import dlm
from dlm.answers import name_text
from dlm.cli.table import print_table, printable

__all__ = ["cells", "history", "print_events"]

SCHEMA = 1  #: "v" in JSON
COLUMNS = ("POSITION", "AGO", "EVENT", "NODE", "PID", "PROGRAM", "MODE", "FENCE", "REMARK")


@click.command("history")
@click.argument("name")
@click.option("--space", "space_name", default="default", metavar="SPACE", help="The lockspace; see dlm space ls.")
@click.option("--at", "position", type=click.IntRange(0), metavar="N", help="Who held it at position N.")
@click.option("--limit", "-n", type=click.IntRange(1, 1000), default=100, show_default=True, help="Events at most.")
@click.option("--json", "as_json", is_flag=True, help="The same content for programs.")
@click.pass_obj
def history(
    url: str | None, name: str, space_name: str, position: int | None, limit: int, as_json: bool
) -> int:
    """Show what has happened to NAME, as far as this host's node remembers: oldest first.

    A position with + was decided by the node alone, after that position. Exit code 1 if nothing is known.
    """
    with dlm.connect(url, space=space_name, create=False) as locks:
        if position is not None:
            return _print_held(locks.held_at(name, position), as_json)
        found = locks.history(name, limit=limit)
    if as_json:
        click.echo(json.dumps({"v": SCHEMA, "history": found.to_json()}))
    elif found.events:
        print_events(found)
    else:
        click.echo(f"dlm: nothing is known of {name!r} since position {found.since}", err=True)
    return 0 if found.events else 1


def _print_held(past: dlm.HeldAt, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps({"v": SCHEMA, "held": past.to_json()}))
        return 0
    word = "to" if past.state == "private" else "from"
    owner = "" if past.owner is None else f" {word} node {past.owner}"
    click.echo(f"position {past.position}: {past.state}{owner}")
    if past.holders is None:
        click.echo("its holders are not known here")
    elif past.holders:
        rows = [
            (str(one.node), str(one.pid or "-"), printable(one.program) or "-", one.mode.name, str(one.fence))
            for one in past.holders
            if one.mode is not None
        ]
        print_table(("NODE", "PID", "PROGRAM", "MODE", "FENCE"), rows)
    return 0


def print_events(events: Iterable[dlm.LockEvent], with_names: bool = False) -> None:
    """A table, one line for each event."""
    columns = ("RESOURCE", *COLUMNS) if with_names else COLUMNS
    print_table(columns, [cells(event, with_names) for event in events])


def cells(event: dlm.LockEvent, with_names: bool = False) -> tuple[str, ...]:
    """The columns of one event."""
    mode = event.asked if event.what in ("waiting", "refused", "cancelled") else event.mode or event.before
    row = (
        f"{event.position}{'+' if event.own else ''}",
        f"{event.ago_s:.3f}s",
        event.what,
        str(event.node or "-"),
        str(event.pid or "-"),
        printable(event.program) or "-",
        "-" if mode is None else mode.name,
        str(event.fence or "-"),
        printable(event.remark),
    )
    return (printable(name_text(event.name)), *row) if with_names else row
