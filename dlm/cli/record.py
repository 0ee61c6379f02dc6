"""``dlm record FILE`` and ``dlm replay FILE``: a node's lock table, recorded live and run again."""

from __future__ import annotations

import os
import queue
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click

import dlm
from dlm.cli.past import COLUMNS as EVENT_COLUMNS
from dlm.cli.past import cells
from dlm.cli.table import print_table
from dlm.events import LockEvent
from dlm.history import Event, plain
from dlm.messages import key_of
from dlm.queries import listing
from dlm.recording import frame, header, read
from dlm.replay import Replay
from vsync import ipc
from vsync.errors import NotConnected, RecordingError, RequestFailed

__all__ = ["record", "replay"]

STOP = "stop"  #: in the queue of rows: this program is to stop


@click.command("record")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--seconds", type=click.FloatRange(0), metavar="S", help="Stop after S seconds; default: Ctrl-C.")
@click.pass_obj
def record(url: str | None, file: Path, seconds: float | None) -> int:
    """Record the lock table of this host's node into FILE, until Ctrl-C: for dlm replay.

    For root and the daemon's user: the names, value blocks and programs of everybody are in it, in the clear.
    """
    try:
        channel = ipc.connect(url, "dlm record")
    except NotConnected as error:
        raise dlm.NotConnected(str(error), url=url or "") from error
    rows: queue.SimpleQueue[Any] = queue.SimpleQueue()
    channel.on_push("dlm", lambda kind, data: rows.put(data))
    channel.on_close(lambda reason: rows.put(None))
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            done = _record(channel, rows, out, seconds)
    except RequestFailed as error:
        raise dlm.InvalidRequest(str(error), code=error.code) from error
    except OSError as error:
        raise dlm.DLMError(f"{file}: {error.strerror}") from error
    finally:
        channel.close()
    click.echo(f"{file}: {done}", err=True)
    return 0


def _record(channel: ipc.SocketChannel, rows: queue.SimpleQueue[Any], out: IO[bytes], seconds: float | None) -> str:
    """Write it all; how it ended."""
    out.write(header())
    head = channel.call("dlm", "record", {})
    out.write(frame(("head", head)))
    while piece := channel.call("dlm", "record_read", {}):
        out.write(frame(("table", piece)))
    out.flush()
    click.echo(f"recording from position {head['position']}", err=True)
    with _stopped_by_signals(rows):
        ended = _follow(rows, out, None if seconds is None else time.monotonic() + seconds)
    if ended:
        return ended
    end = channel.call("dlm", "record_end", {})
    while not rows.empty():
        row = rows.get()
        if row not in (None, STOP):
            out.write(frame(row))
    out.write(frame(("end", end["position"], end["digest"], "stopped")))
    return f"positions {head['position']} to {end['position']}"


@contextmanager
def _stopped_by_signals(rows: queue.SimpleQueue[Any]) -> Iterator[None]:
    """Ctrl-C comes as a row: an exception could fall between a row's leaving the queue and its being written."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: rows.put(STOP)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _follow(rows: queue.SimpleQueue[Any], out: IO[bytes], limit: float | None) -> str:
    """Write rows until this program is to stop (an empty text), or there are no more (why)."""
    while limit is None or time.monotonic() < limit:
        try:
            row = rows.get(timeout=None if limit is None else max(0.0, limit - time.monotonic()))
        except queue.Empty:
            break
        if row is None:
            return "the daemon has gone, or this program was too slow for it; what was recorded can be replayed"
        if row == STOP:
            break
        out.write(frame(row))
        out.flush()
        if row[0] == "end":
            return f"the node's table ended at position {row[1]}: {row[3]}"
    return ""


@click.command("replay")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--until", type=click.IntRange(0), metavar="N", help="Stop after position N.")
@click.option("--name", help="Only the events of this name.")
@click.option("--space", "space_name", default="default", metavar="SPACE", help="Of --name and --state.")
@click.option("--state", is_flag=True, help="Print the table at the end rather than the events.")
def replay(file: Path, until: int | None, name: str | None, space_name: str, state: bool) -> int:
    """Run a recorded lock table again. Exit code 1 if it does not become what it was, or breaks a rule."""
    try:
        rows, torn = read(file.read_bytes(), str(file))
        run = Replay(rows, str(file))
    except RecordingError as error:
        raise dlm.DLMError(str(error)) from error
    key = None if name is None else key_of(space_name, os.fsencode(name))
    events: list[Event] = []
    run.run(until, lambda event: events.append(event) if key in (None, event.row[1]) else None)
    if state:
        _print_state(run, space_name)
    else:
        began = run.head["now"]
        found = [LockEvent.from_row({**plain(event), "at_us": began}, event.at) for event in events]
        columns = ("RESOURCE", *("TIME" if title == "AGO" else title for title in EVENT_COLUMNS))
        print_table(columns, [cells(event, with_names=True) for event in found])
    for problem in run.problems:
        click.echo(f"dlm: {file}: {problem}", err=True)
    if torn:
        click.echo(f"dlm: {file}: {torn}", err=True)
    reason = f", ended: {run.ended}" if run.ended else ""
    verdict = "DIFFERENT" if run.problems else "as it was"
    summary = f"node {run.head['node']}, positions {run.began} to {run.table.applied}, {run.marks} marks compared"
    click.echo(f"{file}: {summary}{reason}: {verdict}", err=True)
    return 1 if run.problems else 0


def _print_state(run: Replay, space: str) -> None:
    from dlm.cli.commands import COLUMNS, cells_of

    found: list[dlm.LockInfo] = []
    while page := listing(run.table, space, b"", len(run.table.names), found[-1].name if found else b""):
        found += map(dlm.LockInfo.from_row, page)
    print_table(COLUMNS, [cells_of(row) for row in found])
