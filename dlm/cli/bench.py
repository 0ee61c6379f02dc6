"""``dlm bench``: what locks cost, beside what a user would pick instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import dlm
from vsync.errors import VsyncError

__all__ = ["bench"]


@click.command()
@click.option("--only", multiple=True, metavar="WHAT", help="Only this row (lock-shared, ...); may be repeated.")
@click.option("-t", "--transport", "transports", multiple=True, help="Only this transport; may be repeated.")
@click.option("-n", "--rounds", type=click.IntRange(1, 1000), default=5, show_default=True, help="How often each.")
@click.option("--peers", is_flag=True, help="Beside Redis, etcd and ZooKeeper, in the same run, if installed.")
@click.option("--full", is_flag=True, help="More rows: takes longer.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.svg", help="Ratios as bars.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def bench(as_json: bool, plot: Path | None, **options: Any) -> int:
    """Measure locks on this machine, with clusters of their own."""
    from dlm.bench import command
    from vsync.bench.options import Options

    def tell(text: str) -> None:
        click.echo(text, err=True)

    try:
        return command.locking(Options(**options), plot, as_json, tell)
    except VsyncError as error:
        raise dlm.DLMError(str(error)) from error
