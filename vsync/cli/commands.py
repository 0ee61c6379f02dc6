"""The commands. Each returns its exit code; ``vsync.cli.run`` turns errors into the others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

import vsync
from vsync.cli import EXIT_NOT_PRIMARY, render
from vsync.cli.nodes import nodes
from vsync.client import Client, connect
from vsync.errors import VsyncError
from vsync.events import ClusterView

__all__ = ["cli"]

SCHEMA = 1  #: the "v" of every JSON object


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(vsync.__version__, message="vsync %(version)s")
def cli() -> None:
    """Look at a vsync cluster from one of its hosts.

    Exit codes: 0 fine, 1 error, 2 usage, 3 reachable but not primary, 4 daemon unreachable.
    """


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--url and --json, the same for every command that asks a daemon."""
    command = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")(command)
    return click.option(
        "-u",
        "--url",
        metavar="URL",
        help="The daemon: unix:///path or a path. Default: $VSYNC_URL, else unix:///run/vsync/vsyncd.sock.",
    )(command)


@cli.command()
@_options
def status(url: str | None, as_json: bool) -> int:
    """Show the cluster, its view, and what runs on it."""
    with _connect(url) as client:
        answer = client.status()
    if as_json:
        _print_json(answer)
    else:
        render.status(answer)
    return _verdict(answer)


@cli.command()
@_options
def members(url: str | None, as_json: bool) -> int:
    """List the configured nodes and which of them are members."""
    with _connect(url) as client:
        answer = client.status()
    if as_json:
        view = answer["view"]
        head = {"cluster": answer["cluster"], "ring": view and view["id"], "primary": _primary(answer)}
        _print_json({**head, "members": answer["nodes"]})
    else:
        render.members(answer["nodes"])
    return _verdict(answer)


@cli.command()
@_options
def groups(url: str | None, as_json: bool) -> int:
    """List the named groups and their processes."""
    with _connect(url) as client:
        answer, cluster = client.groups(), client.cluster
        names = {row["id"]: row["name"] for row in client.members()}
    if as_json:
        _print_json({"cluster": cluster, "groups": answer})
    else:
        render.groups(answer, names)
    return 0


@cli.command()
@_options
@click.option("-n", "--count", type=click.IntRange(1), help="Stop after so many views.")
def watch(url: str | None, as_json: bool, count: int | None) -> int:
    """Print the present view and then every change, until interrupted. With --json: one object a line."""
    with _connect(url) as client:
        for number, view in enumerate(client.views(), 1):
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            if as_json:
                click.echo(json.dumps({"v": SCHEMA, "time": now, **_view(view)}))
            else:
                click.echo(f"{now}  {render.view_line(view)}")
            if number == count:
                break
    return 0


@cli.command()
@_options
@click.option("--override", is_flag=True, help="Primary whatever the votes. All absent nodes must be off.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def bootstrap(url: str | None, as_json: bool, override: bool, yes: bool) -> int:
    """Let a new cluster begin before all of its nodes are there.

    A node that was never in a primary view has no vote, as it may have lost one with its disk; so a new cluster
    begins when all configured nodes are there. With this, a majority of them may begin without the others. It
    goes to the log of all nodes.
    """
    if override and not yes:
        click.confirm("Is every node outside this view off? If not, data will be lost", abort=True, err=True)
    with _connect(url) as client:
        needed = client.bootstrap(override)
    if as_json:
        _print_json({"needed": needed})
    else:
        click.echo("The next view may be primary" if needed else "Nothing to do: the view is primary")
    return 0


cli.add_command(nodes)


@cli.group(invoke_without_command=True)
@click.option("--only", multiple=True, metavar="WHAT", help="Only this row; may be repeated.")
@click.option("-t", "--transport", "transports", multiple=True, help="Only this transport; may be repeated.")
@click.option("-N", "--nodes", type=click.IntRange(1, 16), default=3, show_default=True, help="Of a ring.")
@click.option("-n", "--rounds", type=click.IntRange(1, 1000), default=5, show_default=True, help="How often each.")
@click.option("--peers", is_flag=True, help="Beside corosync, in the same run; needs root and a C compiler.")
@click.option("--full", is_flag=True, help="More rows: takes longer.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.svg", help="Ratios as bars.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.pass_context
def bench(ctx: click.Context, /, as_json: bool, plot: Path | None, **options: Any) -> int | None:
    """Measure on this machine, with clusters of their own: what ordering costs, and how fast failures are seen."""
    if ctx.invoked_subcommand is not None:
        return None
    from vsync.bench import command
    from vsync.bench.ordering import OrderingOptions

    return command.ordering(OrderingOptions(**options), plot, as_json, lambda text: click.echo(text, err=True))


@bench.command("view-change")
@click.option("-n", "--rounds", type=click.IntRange(1, 1000), default=5, show_default=True, help="How often each.")
@click.option("-t", "--transport", "transports", multiple=True, help="Only this transport; may be repeated.")
@click.option("--no-peers", is_flag=True, help="Do not measure corosync, even if it is installed.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def view_change(rounds: int, transports: tuple[str, ...], no_peers: bool, as_json: bool) -> int:
    """How long failures take to become views, and what messages notice of a cut link; beside corosync."""
    from vsync.bench import command

    def tell(text: str) -> None:
        click.echo(text, err=True)

    return command.view_change(rounds, transports, not no_peers, as_json, tell)


@cli.group()
def record() -> None:
    """The flight recorder: what the node's engine was given of late."""


@record.command()
@_options
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
def dump(url: str | None, as_json: bool, file: Path | None) -> int:
    """Have the daemon write its recording into its state directory; copy it to FILE, if given.

    Run it again with: python -m vsync.testing --replay FILE. It holds the cluster's messages in the clear.
    """
    with _connect(url) as client:
        written = client.record()
    if file is not None:
        try:
            shutil.copyfile(written["path"], file)
        except OSError as e:
            raise VsyncError(f"the recording is in {written['path']}, but was not copied: {e}") from e
        written["path"] = str(file)
    if as_json:
        _print_json(written)
    else:
        click.echo(f"{written['path']}  {written['bytes']} bytes")
    return 0


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
def version(as_json: bool) -> int:
    """Show the version of this program."""
    if as_json:
        _print_json({"version": vsync.__version__})
    else:
        click.echo(f"vsync {vsync.__version__}")
    return 0


@cli.command()
@click.option("-o", "--output", default="vsync.key", show_default=True, metavar="FILE", help="Where to write it.")
@click.option("--show", metavar="FILE", help="Make nothing; show the fingerprint of that key.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
def keygen(output: str, show: str | None, as_json: bool) -> int:
    """Make the cluster's key. Copy the file to every node, owned by who runs vsyncd, and set [cluster] key."""
    from vsync.keys import create_key_file, load_key

    key = load_key(show) if show else create_key_file(output)
    if as_json:
        _print_json({"file": show or output, "fingerprint": key.fingerprint})
    elif show:
        click.echo(key.fingerprint)
    else:
        click.echo(f"{output}: key {key.fingerprint}")
    return 0


@cli.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> int:
    """Run a three-node cluster on this machine and kill a node of it."""
    from vsync.demo import main

    return main(list(arguments))


def _connect(url: str | None) -> Client:
    return connect(url, "vsync")


def _primary(answer: dict[str, Any]) -> bool:
    return bool(answer["view"] and answer["view"]["primary"])


def _verdict(answer: dict[str, Any]) -> int:
    return 0 if _primary(answer) else EXIT_NOT_PRIMARY


def _print_json(answer: dict[str, Any]) -> None:
    click.echo(json.dumps({"v": SCHEMA, **answer}, indent=2, default=_jsonable))


def _jsonable(value: object) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _view(view: ClusterView) -> dict[str, Any]:
    def rows(lives: tuple[vsync.NodeLife, ...]) -> list[dict[str, Any]]:
        return [{"id": m.id, "name": m.name, "incarnation": m.incarnation} for m in lives]

    return {
        "id": view.id,
        "primary": view.primary,
        "transitional": view.transitional,
        "members": rows(view.members),
        "joined": rows(view.joined),
        "left": rows(view.left),
        "reason": view.reason,
    }
