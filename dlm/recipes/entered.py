"""What ``with`` has entered: which thing belongs to which exit, when several threads share a recipe (API-R2)."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

__all__ = ["Entered"]

T = TypeVar("T")


class Entered(Generic[T]):
    """A stack of things, each with the thread that entered it. Thread-safe."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._things: list[tuple[int, T]] = []

    def push(self, thing: T) -> T:
        """Remember what this thread has entered."""
        with self._guard:
            self._things.append((threading.get_ident(), thing))
        return thing

    def pop(self) -> T:
        """The last thing that this thread has entered, else the last of all."""
        me = threading.get_ident()
        with self._guard:
            mine = [index for index, (thread, _) in enumerate(self._things) if thread == me]
            return self._things.pop(mine[-1] if mine else -1)[1]
