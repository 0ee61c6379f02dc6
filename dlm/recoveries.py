"""What programs are shown of failures: what waits for them, and what an application has to recover from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["FailureInfo", "Recovery"]


@dataclass(frozen=True, slots=True)
class FailureInfo:
    """A node that failed, for one lockspace (``*``: for all), and what has to come before others get its locks.

    ``needs``: some of ``fencing``, ``recovery``, ``lock_delay``. ``names``: how many names wait for that; ``None``:
    all. ``position`` is that of the view that ended the node's part, ``since_s`` how long the asked node has known.
    """

    space: str
    node: int
    incarnation: int
    position: int
    needs: tuple[str, ...]
    names: int | None
    since_s: float

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> FailureInfo:
        """From the daemon's answer."""
        copied = {key: row[key] for key in ("space", "node", "incarnation", "position", "names")}
        needs = tuple(str(row["needs"]).split(", ")) if row["needs"] else ()
        return cls(**copied, needs=needs, since_s=row["since_us"] / 1e6)

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Recovery:
    """A node that failed with locks in ``space``, whose grants to others wait until an application has recovered
    from that – replayed a journal, say – and says so. ``ready``: the node cannot do anything under its locks any
    more; before, it is too early.
    """

    space: str
    node: int
    incarnation: int
    position: int
    names: int
    ready: bool = True

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Recovery:
        """From the daemon's answer or push."""
        return cls(**{field: row[field] for field in cls.__dataclass_fields__})
