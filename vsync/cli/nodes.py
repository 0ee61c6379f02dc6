"""``vsync nodes``: which nodes belong to the cluster, and how to change that while it runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

import click

from vsync.cli import EXIT_ERROR
from vsync.cli.table import show
from vsync.client import connect

__all__ = ["nodes"]

SCHEMA = 1
_Kind = Literal["add", "remove", "replace", "set"]


class _Group(click.Group):
    """``vsync nodes`` alone lists them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        wants_help = args[:1] in (["-h"], ["--help"])
        return super().parse_args(ctx, args if args and (args[0][:1] != "-" or wants_help) else ["ls", *args])


@click.group(cls=_Group)
def nodes() -> None:
    """List, add, remove and replace nodes. Without a command: list them.

    A change is made in a primary view, one at a time, and is in force when the command returns. The [[nodes]]
    tables of configuration files are the cluster's beginning only; `vsync nodes export` prints what to paste there.
    """


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")(command)
    return click.option(
        "-u", "--url", metavar="URL", help="The daemon. Default: $VSYNC_URL, else unix:///run/vsync/vsyncd.sock."
    )(command)


def _votes(default: str) -> Callable[..., Any]:
    return click.option("--votes", type=click.IntRange(0, 1000), help=f"Its votes. Default: {default}.")


@nodes.command()
@_options
def ls(url: str | None, as_json: bool) -> int:
    """List the nodes that belong to the cluster."""
    with connect(url, "vsync") as client:
        _show(client.nodes(), as_json)
    return 0


@nodes.command()
@_options
@click.argument("name")
@click.argument("addresses", nargs=-1, required=True)
@click.option("--id", "node", type=click.IntRange(1), help="Default: one more than the highest so far.")
@_votes("1")
def add(url: str | None, as_json: bool, node: int | None, **what: Any) -> int:
    """Take in a new node: NAME at ADDRESS (host:port; one for each link, in the order of the others').

    Its own file must list it and at least one of the others. It has no vote before it has been in a primary view.
    """
    return _change(url, as_json, "add", node, **what)


@nodes.command()
@_options
@click.argument("node")
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(url: str | None, as_json: bool, node: str, yes: bool) -> int:
    """Take NODE (name or id) out of the cluster. Stop its vsyncd first, so that its locks go at once."""
    if not yes:
        click.confirm(f"Take {node} out of the cluster?", abort=True, err=True)
    return _change(url, as_json, "remove", node)


@nodes.command()
@_options
@click.argument("node")
@click.argument("addresses", nargs=-1)
@click.option("--name", default="", help="Its name. Default: as it was.")
@_votes("as they were")
def replace(url: str | None, as_json: bool, node: str, **what: Any) -> int:
    """Give NODE's id and votes to another machine, or to the same one with a new disk; at ADDRESS, if given.

    What the former machine has stored does not count any more. Its vsyncd must be off.
    """
    return _change(url, as_json, "replace", node, **what)


@nodes.command("set")
@_options
@click.argument("node")
@click.option("--address", "addresses", multiple=True, help="Where it is from now on; again for each link.")
@click.option("--name", default="", help="Its name.")
@_votes("as they were")
def set_(url: str | None, as_json: bool, node: str, **what: Any) -> int:
    """Change NODE's votes, addresses or name; it keeps its disk."""
    return _change(url, as_json, "set", node, **what)


@nodes.command()
@_options
def export(url: str | None, as_json: bool) -> int:
    """Print the [[nodes]] tables for the configuration files."""
    with connect(url, "vsync") as client:
        answer = client.nodes()
    if as_json:
        _show(answer, as_json)
    else:
        click.echo("\n".join(_tables(answer)))
    return 0


def _tables(answer: Mapping[str, Any]) -> list[str]:
    lines = [f"# The nodes of the cluster, version {answer['version']}."]
    for row in answer["nodes"]:
        one = len(row["addresses"]) == 1
        where = json.dumps(row["addresses"][0] if one else row["addresses"])
        lines += ["", "[[nodes]]", f"id = {row['id']}", f'name = "{row["name"]}"']
        lines += [f"{'address' if one else 'addresses'} = {where}", f"votes = {row['votes']}"]
    return lines


def _change(url: str | None, as_json: bool, kind: _Kind, node: str | int | None, **what: Any) -> int:
    with connect(url, "vsync") as client:
        try:
            answer = client.change_nodes(kind, node, **what)
        except TimeoutError:
            click.echo(
                "vsync: the change is not in force yet, and may still come or not: look at vsync nodes", err=True
            )
            return EXIT_ERROR
    _show(answer, as_json)
    return 0


def _show(answer: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"v": SCHEMA, **answer}, indent=2))
        return
    file = "As in this host's file: no view has been primary yet"
    click.echo(f"Version {answer['version']}" if answer["version"] else file)
    rows = [
        (row["id"], row["name"], ", ".join(row["addresses"]), row["votes"], row["state"], row["since"] or "-")
        for row in answer["nodes"]
    ]
    show(("ID", "NAME", "ADDRESS", "VOTES", "STATE", "SINCE"), rows)
    if answer["remedy"]:
        click.echo(f"vsync: {answer['remedy']}", err=True)
