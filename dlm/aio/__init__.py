"""Locks for asyncio: ``AsyncClient`` and what it gives. docs/asyncio.md tells how to use it."""

from dlm.aio.cancel import CancelOnLost
from dlm.aio.client import AsyncClient
from dlm.aio.held import AsyncHeld, AsyncLoss
from dlm.aio.lock import AsyncLock
from dlm.aio.together import AsyncHeldAll, AsyncLockAll

__all__ = [
    "AsyncClient",
    "AsyncHeld",
    "AsyncHeldAll",
    "AsyncLock",
    "AsyncLockAll",
    "AsyncLoss",
    "CancelOnLost",
]
