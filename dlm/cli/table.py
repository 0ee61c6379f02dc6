"""Tables: plain ASCII columns in pipes and logs, rich on a terminal (imported only then)."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["print_table", "printable"]


def printable(text: str) -> str:
    """``text`` without anything that a terminal could take for a command."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print to standard output, the title line always."""
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        _print_rich(columns, rows)
        return
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    for cells in (columns, *rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        print(line.rstrip())


def _print_rich(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for cells in rows:
        table.add_row(*(Text(cell) for cell in cells))
    Console().print(table)  # honours NO_COLOR
