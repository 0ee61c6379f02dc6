"""Who waits for whom: the circle that a ``Deadlock`` tells of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dlm.info import Mode
from dlm.text import name_text

__all__ = ["Waiting", "cycle_from", "cycle_text"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """One lock of a circle. It waits on ``name`` for mode ``asked``, holding ``mode`` there meanwhile (``None``:
    nothing), and what it waits for belongs to the owner of the next one.
    """

    name: bytes
    space: str
    node: int
    session: int
    pid: int
    program: str
    mode: Mode | None
    asked: Mode | None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Waiting:
        """From one element of ``cycle`` in the daemon's refusal."""
        name, program = row.get("name", b""), row.get("program") or ""
        return cls(
            name=name if isinstance(name, bytes) else str(name).encode(),
            space=str(row.get("space", "default")),
            node=int(row.get("node") or 0),
            session=int(row.get("session") or 0),
            pid=int(row.get("pid") or 0),
            program=name_text(program) if isinstance(program, bytes) else str(program),
            mode=_mode(row.get("mode")),
            asked=_mode(row.get("asked")),
        )

    @property
    def who(self) -> str:
        """Its owner, for people."""
        return f"process {self.pid or '?'} ({self.program or '?'}) of node {self.node}"

    @property
    def wants(self) -> str:
        """What it waits for, for people."""
        asked = f" in {self.asked.name}" if self.asked is not None else ""
        holding = f" (holding {self.mode.name})" if self.mode is not None else ""
        return f"waits for {name_text(self.name)!r}{asked}{holding}"

    def __str__(self) -> str:
        return f"{self.who} {self.wants}"


def cycle_from(rows: Iterable[Mapping[str, Any]]) -> tuple[Waiting, ...]:
    """The circle in a refusal, the victim first."""
    return tuple(Waiting.from_row(row) for row in rows)


def cycle_text(cycle: Iterable[Waiting]) -> str:
    """The whole circle as one sentence, back to its beginning."""
    links = list(cycle)
    if not links:
        return ""
    text = str(links[0])
    for link in links[1:]:
        text += f" behind {link.who}, which {link.wants}"
    return f"{text} behind {links[0].who}"


def _mode(value: str | None) -> Mode | None:
    return None if value is None else Mode[value]
