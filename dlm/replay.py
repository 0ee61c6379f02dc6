"""Run a recorded lock table again: the same messages and views, so the same events, marks and table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dlm.history import Event
from dlm.recording import held_from, message_from, view_from
from dlm.recovery import primary_view
from dlm.snapshot import Damage
from dlm.table import Table
from vsync.errors import RecordingError

__all__ = ["Replay"]

OBSERVER = 0  #: no node has this number: the table is that of somebody who owns nothing


class Replay:
    """One file. ``table`` is there from the beginning, ``problems`` are sentences."""

    def __init__(self, rows: Sequence[Any], where: str) -> None:
        """Raises ``RecordingError`` for a file that ends before the table is complete."""
        if not rows or rows[0][0] != "head":
            raise RecordingError(f"{where}: has no head: nothing was recorded")
        self.head: dict[str, Any] = rows[0][1]
        size = 1
        while size < len(rows) and rows[size][0] == "table":
            size += 1
        snapshot = b"".join(row[1] for row in rows[1:size])
        self._rows = rows[size:]
        try:
            self.table = Table.decode(OBSERVER, snapshot, self.head["now"])
        except Damage as damage:
            text = f"{where}: the table at its beginning is not whole: {damage}: nothing can be run again"
            raise RecordingError(text) from damage
        self.table.history.resize(1 << 20)
        self.began = self.table.applied
        self.problems: list[str] = []
        self.marks = 0  #: that were as recorded
        self.ended = ""  #: why the recording ends, if it says so

    def run(self, until: int | None = None, on_event: Callable[[Event], object] | None = None) -> None:
        """Go through it, up to a position. What is wrong goes into ``problems``, and ends it."""
        for row in self._rows:
            if self.problems or (until is not None and self.table.applied >= until and row[0] != "mark"):
                return
            self._step(row)
            for each in self.table.history.shared:
                if on_event is not None:
                    on_event(Event(*each))
            self.table.history.shared.clear()
        self._sound()

    def _step(self, row: Sequence[Any]) -> None:
        table = self.table
        match row[0]:
            case "message":
                table.now = row[1]
                table.apply(*message_from(row[2:]))
            case "view":
                _, table.now, ring, members, going_on, lives, before, behind = row
                view = view_from(ring, members, lives)
                primary_view(table, view, frozenset(going_on), held_from(before), held_from(behind))
                self._sound()
            case "mark":
                self._compare(row[1], row[2])
            case "end":
                self.ended = row[3]
                if (row[1], row[2]) != (table.applied, table.digest()):
                    self.problems.append(
                        f"position {table.applied}: the table is not that of the node, which was at {row[1]}"
                    )

    def _compare(self, position: int, value: int) -> None:
        found = self.table.marks.get(position)
        if found != value:
            said = "none" if found is None else f"{found:08x}"
            self.problems.append(f"position {position}: the mark is {said}, at the node it was {value:08x}")
        self.marks += 1
        self._sound()

    def _sound(self) -> None:
        try:
            self.table.invariants()
        except AssertionError as error:
            self.problems.append(f"position {self.table.applied}: {error}")
