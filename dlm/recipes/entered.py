"""What ``with`` has entered: which thing belongs to which exit, when threads or tasks share a recipe (API-R2)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Entered"]

T = TypeVar("T")


class Entered(Generic[T]):
    """A stack of things, each with the thread that entered it, or what else ``who`` gives. Thread-safe."""

    def __init__(self, who: Callable[[], object] = threading.get_ident) -> None:
        self._guard = threading.Lock()
        self._who = who
        self._things: list[tuple[object, T]] = []

    def push(self, thing: T) -> T:
        """Remember what this thread has entered."""
        with self._guard:
            self._things.append((self._who(), thing))
        return thing

    def pop(self) -> T:
        """The last thing that this thread has entered, else the last of all: the exit may be somebody else's."""
        me = self._who()
        with self._guard:
            mine = [index for index, (who, _) in enumerate(self._things) if who == me]
            return self._things.pop(mine[-1] if mine else -1)[1]
