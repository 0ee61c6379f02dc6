"""The scripted channel of these tests, in an event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import dlm
from tests.dlm_client.conftest import FakeChannel
from tests.in_loop import soon

__all__ = ["LoopFake", "opened"]


class LoopFake(FakeChannel):
    """Everything happens in the loop of the test."""

    def __init__(self) -> None:
        super().__init__()
        self.flushes = 0

    async def flushed(self, timeout: float) -> bool:
        self.flushes += 1
        return True

    async def sent_once(self, verb: str, count: int = 1) -> dict[str, Any]:
        """Wait until ``verb`` has been sent so often; the arguments of the last."""
        await soon(lambda: self.verbs().count(verb) >= count, f"{verb} has not been sent; sent: {self.sent}")
        return self.last(verb)


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[LoopFake, dlm.AsyncClient]]:
    """A channel, and a client over it."""
    channel = LoopFake()
    async with dlm.AsyncClient.over(channel, clock_us=lambda: channel.now) as locks:
        yield channel, locks
