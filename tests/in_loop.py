"""Tests that run in an event loop, without a plugin."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

__all__ = ["in_loop", "soon", "turns"]

P = ParamSpec("P")
LIMIT_S = 60.0


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """The test runs in a loop of its own, in debug mode: that minds calls from the wrong thread."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def limited() -> None:
            async with asyncio.timeout(LIMIT_S):
                await test(*args, **kwargs)

        asyncio.run(limited(), debug=True)

    return run


async def soon(condition: Callable[[], Any], what: str = "condition", seconds: float = 20) -> Any:
    """Poll ``condition`` until it holds; fail after ``seconds``."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not come true within {seconds} s"
        await asyncio.sleep(0.002)
    return value


async def turns(count: int = 5) -> None:
    """Let the loop run everything that is due, and what follows from it."""
    for _ in range(count):
        await asyncio.sleep(0)
