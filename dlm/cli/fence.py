"""``dlm fences``, ``dlm fence-ack``: nodes that failed and are not known to be down. ``dlm fence-check``: agents.

Exit codes as in ``dlm.cli.commands``.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import click

import dlm
from dlm.cli.table import print_table, printable
from vsync import ipc
from vsync.errors import NotConnected, RequestFailed

__all__ = ["fence_ack", "fence_check", "fences"]

SCHEMA = 1  #: "v" in JSON
COLUMNS = ("NODE", "ID", "SINCE", "ACTOR", "STATE", "FAILED", "EXIT", "SAID")
WARNING = """\
Node {name} (id {node}) counts as down from then on, and other nodes are granted the locks that it had.
If it is only out of sight it may still write to what these locks protect: nothing checks your word.
Make sure that it is powered off, or has been restarted since it failed, or cannot reach any of that.
"""


@click.command("fences")
@click.option("--json", "as_json", is_flag=True, help="The same content for programs.")
@click.pass_obj
def fences(url: str | None, as_json: bool) -> int:
    """List the nodes that failed and must be fenced before others get their locks."""
    rows = _call(url, "fences", {})
    if as_json:
        click.echo(json.dumps({"v": SCHEMA, "fences": rows}))
    else:
        print_table(COLUMNS, [_cells(row) for row in rows])
    return 0


@click.command("fence-ack")
@click.argument("node")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def fence_ack(url: str | None, node: str, yes: bool) -> int:
    """Say that NODE (name or id), which failed, is down: who waits for its fencing goes on.

    For root and the daemon's user; the log says who did it.
    """
    found = [row for row in _call(url, "fences", {}) if node in (row["name"], str(row["node"]))]
    if not found:
        click.echo(f"dlm: nothing waits for node {node!r} to be fenced; see dlm fences", err=True)
        return 1
    row = found[0]
    click.echo(WARNING.format(name=printable(row["name"]), node=row["node"]), nl=False, err=True)
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("there is nobody to ask: --yes says that you are sure")
    if not yes and click.prompt("Its name, if you are sure", err=True) != row["name"]:
        click.echo("dlm: nothing was done", err=True)
        return 1
    _call(url, "fence_ack", {"node": row["node"]})
    click.echo(f"node {printable(row['name'])} counts as down")
    return 0


@click.command("fence-check")
@click.argument("node")
@click.pass_obj
def fence_check(url: str | None, node: str) -> int:
    """Ask the agent for NODE (name or id) how it is, from this host's node: nothing is switched.

    For root and the daemon's user. Exit code 1 if the agent does not know.
    """
    with _channel(url) as channel:
        rows = channel.call("node", "members", {})
        found = [row for row in rows if node in (row["name"], str(row["id"]))]
        if not found:
            raise click.UsageError(f"there is no node {node!r}; there are {', '.join(row['name'] for row in rows)}")
        done = channel.call("dlm", "fence_check", {"node": found[0]["id"]})
    name, state = found[0]["name"], {0: "on", 2: "off"}.get(done["exit"])
    failed = "failed" if done["exit"] is None else f"exit {done['exit']}"
    click.echo(f"{printable(name)}: {state or failed}{': ' if done['said'] else ''}{printable(done['said'])}")
    return 0 if state else 1


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    state = row["step"] or ("no agent" if row["actor"] is None else "its work")
    if row["due_us"]:
        state += f", {row['due_us'] / 1e6:.0f} s"
    failed = f"{row['attempts']}" + (f", {row['given_up']} gave up" if row["given_up"] else "")
    exit_code = "-" if row["exit"] is None else str(row["exit"])
    actor = "-" if row["actor"] is None else str(row["actor"])
    name, since = printable(row["name"]), f"{row['since_us'] / 1e6:.0f} s"
    return name, str(row["node"]), since, actor, state, failed, exit_code, printable(row["said"]) or "-"


def _call(url: str | None, verb: str, args: dict[str, Any]) -> Any:
    """Ask this host's node. Raises ``DLMError``."""
    with _channel(url) as channel:
        return channel.call("dlm", verb, args)


@contextlib.contextmanager
def _channel(url: str | None) -> Iterator[ipc.Channel]:
    """A session with this host's node. Raises ``DLMError``, also for what is refused within."""
    try:
        channel = ipc.connect(url, "dlm fence")
    except NotConnected as error:
        raise dlm.NotConnected(str(error), url=url or "") from error
    try:
        yield channel
    except RequestFailed as error:
        if error.code == "no_quorum":
            raise dlm.NoQuorum(str(error)) from error
        raise dlm.InvalidRequest(str(error), code=error.code) from error
    finally:
        channel.close()
