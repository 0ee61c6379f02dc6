"""A counter: a number in the value block of ``NAME/counter``, changed under EX and kept by whoever has it open."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING

from dlm import answers
from dlm.errors import NotHeld
from dlm.info import Flag, Mode
from dlm.recipes.asked import drop

if TYPE_CHECKING:
    from typing import Self

    from dlm.client import Client
    from dlm.held import Held

__all__ = ["Counter"]


class Counter:
    """A whole number of any sign that every change counts for, once. Thread-safe; one change at a time each.

    ``with locks.counter("jobs") as counter`` has it open. It lives as long as anybody, anywhere, has it open, and
    begins at ``start`` again afterwards. The death of a process or node leaves it as it was before or after the
    change. For numbers that must never come again, whatever happens, use a fence.
    """

    def __init__(self, client: Client, name: str | bytes, start: int = 0) -> None:
        self.name = answers.name_bytes(name)
        self.start = start
        self._client = client
        self._guard = threading.Lock()
        self._held: Held | None = None

    @property
    def value(self) -> int:
        """The number now. Raises what ``add`` does."""
        with self._guard:
            held = self._open()
            held.convert(Mode.NL)
            return self._number(held)

    def add(self, amount: int = 1, timeout: float | None = None) -> int:
        """Add ``amount`` and return the sum. ``timeout`` in seconds.

        Raises ``LockTimeout`` (nothing was added), ``LockLost`` (that is not known), ``NotHeld`` if it is not open,
        ``NotConnected``, ``ForkedProcess``.
        """
        with self._guard:
            held = self._open()
            held.convert(Mode.EX, timeout)
            total = self._number(held)
            try:
                total += amount
            finally:
                held.convert(Mode.NL, value=b"%d" % total)
            return total

    def _number(self, held: Held) -> int:
        return int(held.value) if held.value else self.start

    def _open(self) -> Held:
        if self._held is None:
            raise NotHeld(f"counter {answers.name_text(self.name)!r} is not open", name=self.name)
        return self._held

    def __enter__(self) -> Self:
        with self._guard:
            if self._held is None:
                self._held = self._client.acquire(self.name + b"/counter", Mode.NL, flags=Flag.EXPEDITE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._guard:
            held, self._held = self._held, None
        if held is not None:
            drop(held)

    def __repr__(self) -> str:
        return f"<dlm.Counter {answers.name_text(self.name)!r}>"
