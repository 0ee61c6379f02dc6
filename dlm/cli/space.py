"""``dlm space ls|create|release``: the lockspaces of the cluster. Exit codes as in ``dlm.cli.commands``."""

from __future__ import annotations

import grp
import json
import pwd

import click

import dlm
from dlm.arguments import MAX_VALUE_LIMIT, PERMISSIONS, VALUE_LIMIT
from dlm.cli.table import print_table, printable

__all__ = ["SCHEMA", "space"]

SCHEMA = 1  #: "v" in JSON
COLUMNS = ("SPACE", "OWNER", "GROUP", "MODE", "VALUE", "NAMES", "STATE")

_json = click.option("--json", "as_json", is_flag=True, help="The same content for programs.")


@click.group("space")
def space() -> None:
    """Lockspaces: names apart from each other, with owners and permissions like files."""


@space.command("ls")
@_json
@click.pass_obj
def ls(url: str | None, as_json: bool) -> int:
    """List the lockspaces. VALUE is the length of the longest value block, NAMES those with locks."""
    with dlm.connect(url) as locks:
        found = locks.spaces()
    if as_json:
        click.echo(json.dumps({"v": SCHEMA, "spaces": [one.to_json() for one in found]}))
    else:
        print_table(COLUMNS, [_cells(one) for one in found])
    return 0


@space.command("create")
@click.argument("name")
@click.option("--mode", "permissions", default=f"{PERMISSIONS:o}", show_default=True, help="Octal, as for chmod.")
@click.option(
    "--value-limit", type=click.IntRange(1, MAX_VALUE_LIMIT), default=VALUE_LIMIT, show_default=True,
    metavar="BYTES", help=f"Of the longest value block, at most {MAX_VALUE_LIMIT}.",
)  # fmt: skip
@click.option("--exist-ok", is_flag=True, help="One that is there already will do, as it is.")
@_json
@click.pass_obj
def create(
    url: str | None, name: str, permissions: str, value_limit: int, exist_ok: bool, as_json: bool
) -> int:
    """Make lockspace NAME, owned by the caller. Who opens it needs permission to read and write."""
    with dlm.connect(url) as locks:
        made = locks.create_space(
            name, permissions=_octal(permissions), value_limit=value_limit, exclusive=not exist_ok
        )
    if as_json:
        click.echo(json.dumps({"v": SCHEMA, "space": made.to_json()}))
    return 0


@space.command("release")
@click.argument("name")
@click.option("--force", "-f", count=True, help="Locks of other nodes do not matter; twice: no locks do.")
@click.pass_obj
def release(url: str | None, name: str, force: int) -> int:
    """Release lockspace NAME: its owner may, or root, and without --force only if there are no locks in it."""
    with dlm.connect(url) as locks:
        locks.release_space(name, min(force, 2))
    return 0


def _octal(text: str) -> int:
    try:
        return int(text, 8)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not an octal number", param_hint="--mode") from None


def _cells(one: dlm.SpaceInfo) -> tuple[str, ...]:
    return (
        printable(one.name),
        _user(one.uid),
        _group(one.gid),
        f"{one.permissions:04o}",
        str(one.value_limit),
        str(one.names),
        "closing" if one.closing else "open",
    )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
