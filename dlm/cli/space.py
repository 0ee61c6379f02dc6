"""``dlm space ls|create|set|release``: the lockspaces of the cluster. Exit codes as in ``dlm.cli.commands``."""

from __future__ import annotations

import grp
import json
import pwd
import re
from collections.abc import Callable
from typing import Any

import click

import dlm
from dlm.arguments import MAX_VALUE_LIMIT, PERMISSIONS, VALUE_LIMIT
from dlm.cli.table import print_table, printable
from dlm.options import ANSWERS, MAX_DELAY_MS

__all__ = ["SCHEMA", "space"]

SCHEMA = 1  #: "v" in JSON
COLUMNS = ("SPACE", "OWNER", "GROUP", "MODE", "VALUE", "NAMES", "STATE", "OPTIONS")

_json = click.option("--json", "as_json", is_flag=True, help="The same content for programs.")
_UNITS = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0}


def _seconds(context: click.Context, option: click.Parameter, text: str | None) -> float | None:
    """``5s``, ``500ms``, ``1m``, or a number of seconds."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]*)", text)
    if found is None or found[2] not in _UNITS:
        raise click.BadParameter(f"{text!r} is not a time like 5s, 500ms or 1m")
    seconds = float(found[1]) * _UNITS[found[2]]
    if seconds * 1000 > MAX_DELAY_MS:
        raise click.BadParameter(f"{text!r} is more than {MAX_DELAY_MS // 60_000}m")
    return seconds


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a lockspace; what is not given is ``None``."""
    fencing = "After a failure: wait until the node is fenced."
    recovery = "After a failure: wait for dlm recovered."
    delay = "After a failure: wait so long, as 5s."
    for option in (
        click.option("--recovery/--no-recovery", default=None, help=recovery),
        click.option("--fencing/--no-fencing", default=None, help=fencing),
        click.option("--lock-delay", callback=_seconds, metavar="TIME", help=delay),
        click.option("--answer", type=click.Choice(ANSWERS), help="When grants are answered."),
    ):
        command = option(command)
    return command


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
@_options
@_json
@click.pass_obj
def create(
    url: str | None, /, name: str, permissions: str, value_limit: int, exist_ok: bool, as_json: bool, **options: Any
) -> int:
    """Make lockspace NAME, owned by the caller. Who opens it needs permission to read and write.

    Options that are not given are those of the daemon's configuration.
    """
    with dlm.connect(url) as locks:
        made = locks.create_space(
            name, permissions=_octal(permissions), value_limit=value_limit, exclusive=not exist_ok, **options
        )
    if as_json:
        click.echo(json.dumps({"v": SCHEMA, "space": made.to_json()}))
    return 0


@space.command("set")
@click.argument("name")
@_options
@_json
@click.pass_obj
def set_options(url: str | None, /, name: str, as_json: bool, **options: Any) -> int:
    """Change options of lockspace NAME, also of default; those that are not given stay as they are."""
    if all(value is None for value in options.values()):
        raise click.UsageError("nothing to change: give --answer, --lock-delay, --fencing or --recovery")
    with dlm.connect(url) as locks:
        found = locks.set_space(name, **options)
    if as_json:
        click.echo(json.dumps({"v": SCHEMA, "space": found.to_json()}))
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
        _words(one),
    )


def _words(one: dlm.SpaceInfo) -> str:
    words = [one.answer] if one.answer != ANSWERS[0] else []
    words += [word for word in ("fencing", "recovery") if getattr(one, word)]
    if one.lock_delay_ms:
        words.append(f"lock_delay={one.lock_delay_ms / 1000:g}s")
    return ",".join(words) or "-"


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
