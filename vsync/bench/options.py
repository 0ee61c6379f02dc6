"""What is asked of a bench."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Options", "Tell"]

Tell = Callable[[str], None]  #: is told how far it is


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure: ``only`` some of ``vsync.bench.rows.WHATS`` (all, if empty), on which transports (all,
    too).
    """

    only: Sequence[str] = ()
    transports: Sequence[str] = ()
    rounds: int = 5
    peers: bool = False
    full: bool = False

    def wants(self, *whats: str) -> bool:
        """Whether any of that is to be measured."""
        return not self.only or any(what in self.only for what in whats)
