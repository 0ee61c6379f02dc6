"""``--plot FILE.svg``: the ratios of a report as bars, one a row, on a logarithmic scale whose middle is the peer.

Written by hand: bars and text are all there is to it, and no plotting library need be installed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from vsync.bench.rows import Row
from vsync.errors import VsyncError

__all__ = ["svg", "write_svg"]

LEFT, WIDTH, RIGHT = 430, 460, 110  #: pixels: labels, bars, figures
LINE, TOP = 22, 54
BETTER, WORSE = "#2a7f62", "#b4543c"
LESS_IS_BETTER = ("us", "ms", "s", "B", "%")  #: units


def write_svg(rows: Sequence[Row], title: str, file: Path) -> None:
    """Raises ``VsyncError`` if it cannot be written."""
    try:
        file.write_text(svg(rows, title), encoding="utf-8")
    except OSError as error:
        raise VsyncError(f"{file}: {error.strerror}") from error


def svg(rows: Sequence[Row], title: str) -> str:
    """The picture. Rows without a peer are left out."""
    compared = [row for row in rows if row.ratio]
    reach = max((abs(math.log10(_gain(row))) for row in compared), default=1.0)
    decades = max(1, math.ceil(reach))
    height = TOP + LINE * len(compared) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + RIGHT}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="12" y="24" font-size="16">{escape(title)}</text>',
    ]
    for power in range(-decades, decades + 1):
        x = _x(10.0**power, decades)
        colour = "#555" if power == 0 else "#ddd"
        parts.append(f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{height - 26}" stroke="{colour}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 10}" text-anchor="middle">{10.0**power:g}×</text>')
    for number, row in enumerate(compared):
        parts += _bar(row, TOP + LINE * number, decades)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(row: Row, y: int, decades: int) -> list[str]:
    gain = _gain(row)
    one, x = _x(1.0, decades), _x(gain, decades)
    words = (row.what, row.case, row.transport, row.via, f"{row.size} B" if row.size else "")
    callers = f"{row.callers} callers" if row.callers and row.callers > 1 else ""
    label = ", ".join(str(word) for word in (*words, callers) if word) + f" : {row.peer}"
    return [
        f'<text x="{LEFT - 10}" y="{y + 13}" text-anchor="end">{escape(label)}</text>',
        f'<rect x="{min(one, x):.1f}" y="{y + 2}" width="{max(abs(x - one), 1):.1f}" height="{LINE - 8}" '
        f'fill="{BETTER if gain >= 1 else WORSE}"/>',
        f'<text x="{LEFT + WIDTH + 10}" y="{y + 13}">{gain:.3g}×</text>',
    ]


def _gain(row: Row) -> float:
    """How much better we are: 2 is twice as fast, or half as large."""
    assert row.ratio
    return 1 / row.ratio if row.unit in LESS_IS_BETTER else row.ratio


def _x(gain: float, decades: int) -> float:
    return LEFT + WIDTH * (math.log10(gain) + decades) / (2 * decades)
