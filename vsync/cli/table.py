"""Tables: plain ASCII that reads well in a log; drawn by rich on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["plain", "show"]


def show(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table to stdout."""
    cells = [[_text(c) for c in row] for row in rows]
    if not sys.stdout.isatty():
        print(plain(columns, cells))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if _numeric(cells, index) else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(c) for c in row))  # Text: a name may contain what rich takes for markup
    Console().print(table)


def plain(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as lines of ASCII, columns two blanks apart."""
    widths = [max(len(line[i]) for line in [columns, *rows]) for i in range(len(columns))]
    right = [_numeric(rows, i) for i in range(len(columns))]
    lines = []
    for line in [columns, *rows]:
        padded = (
            c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)
        )
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    # Names come from clients: no control characters, so that nobody can move the reader's cursor.
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _numeric(rows: Sequence[Sequence[str]], index: int) -> bool:
    return bool(rows) and all(row[index].replace(".", "", 1).isdigit() or row[index] == "-" for row in rows)
