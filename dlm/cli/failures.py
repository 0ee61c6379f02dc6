"""``dlm failures``, ``dlm recovered SPACE NODE``: what waits after a failure.

Exit codes as in ``dlm.cli.commands``.
"""

from __future__ import annotations

import json

import click

import dlm
from dlm.cli.table import print_table, printable
from dlm.recoveries import FailureInfo

__all__ = ["failures", "recovered"]

SCHEMA = 1  #: "v" in JSON
COLUMNS = ("SPACE", "NODE", "NEEDS", "NAMES", "SINCE")


@click.command("failures")
@click.option("--json", "as_json", is_flag=True, help="The same content for programs.")
@click.pass_obj
def failures(url: str | None, as_json: bool) -> int:
    """List the nodes that failed and what has to come before others get their locks."""
    with dlm.connect(url) as locks:
        found = locks.failures()
    if as_json:
        click.echo(json.dumps({"v": SCHEMA, "failures": [one.to_json() for one in found]}))
    else:
        print_table(COLUMNS, [_cells(one) for one in found])
    return 0


@click.command("recovered")
@click.argument("space")
@click.argument("node", type=click.IntRange(1))
@click.pass_obj
def recovered(url: str | None, space: str, node: int) -> int:
    """Say that lockspace SPACE has been recovered from the failure of NODE (its id): others get its locks."""
    with dlm.connect(url, space=space, create=False) as locks:
        locks.recovered(node)
    return 0


def _cells(one: FailureInfo) -> tuple[str, ...]:
    names = "all" if one.names is None else str(one.names)
    return printable(one.space), str(one.node), ", ".join(one.needs), names, f"{one.since_s:.0f}s"
