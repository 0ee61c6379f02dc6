"""A distributed lock manager over virtual synchrony: six modes, conversions, value blocks, fencing tokens.

>>> import dlm
>>> with dlm.connect() as locks:                       # doctest: +SKIP
...     with locks.lock("reports/nightly", timeout=10) as held:
...         print(held.fence)
"""

from typing import TYPE_CHECKING

from dlm.client import Client, Lock, connect
from dlm.client_spaces import SpaceInfo
from dlm.cycle import Waiting
from dlm.errors import (
    ConfigError,
    Deadlock,
    DLMError,
    ForkedProcess,
    InvalidRequest,
    LockBusy,
    LockCancelled,
    LockError,
    LockLost,
    LockSuspended,
    LockTimeout,
    NoQuorum,
    NoSuchSpace,
    NotConnected,
    NotHeld,
    NotSupported,
    PermissionDenied,
    SpaceBusy,
    SpaceExists,
    StaleFence,
)
from dlm.events import HeldAt, LockEvent, NameHistory
from dlm.held import Held, Loss
from dlm.info import Flag, Holder, LockInfo, Mode, Outcome
from dlm.lockspace import Lockspace
from dlm.reasons import Blocker, Party, Wait, Why, Withheld
from dlm.recipes import Barrier, Counter, Election, Semaphore
from dlm.recoveries import FailureInfo, Recovery
from dlm.status import Lksb, Status
from dlm.together import HeldAll, LockAll
from dlm.transaction import Transaction

if TYPE_CHECKING:
    from dlm.aio import AsyncClient, AsyncHeld, AsyncHeldAll, AsyncLock, AsyncLockAll
    from dlm.fenced import FencedResource

__all__ = [
    "AsyncClient",
    "AsyncHeld",
    "AsyncHeldAll",
    "AsyncLock",
    "AsyncLockAll",
    "Barrier",
    "Blocker",
    "Client",
    "ConfigError",
    "Counter",
    "DLMError",
    "Deadlock",
    "Election",
    "FailureInfo",
    "FencedResource",
    "Flag",
    "ForkedProcess",
    "Held",
    "HeldAll",
    "HeldAt",
    "Holder",
    "InvalidRequest",
    "Lksb",
    "Lock",
    "LockAll",
    "LockBusy",
    "LockCancelled",
    "LockError",
    "LockEvent",
    "LockInfo",
    "LockLost",
    "LockSuspended",
    "LockTimeout",
    "Lockspace",
    "Loss",
    "Mode",
    "NameHistory",
    "NoQuorum",
    "NoSuchSpace",
    "NotConnected",
    "NotHeld",
    "NotSupported",
    "Outcome",
    "Party",
    "PermissionDenied",
    "Recovery",
    "Semaphore",
    "SpaceBusy",
    "SpaceExists",
    "SpaceInfo",
    "StaleFence",
    "Status",
    "Transaction",
    "Wait",
    "Waiting",
    "Why",
    "Withheld",
    "connect",
]

#: What is imported when it is used: asyncio takes as long as all the rest, and few programs need the others.
_LATER = {
    **dict.fromkeys(("AsyncClient", "AsyncHeld", "AsyncHeldAll", "AsyncLock", "AsyncLockAll"), "dlm.aio"),
    "FencedResource": "dlm.fenced",
}

if not TYPE_CHECKING:  # type checkers would take every name for one of them

    def __getattr__(name):
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(_LATER[name]), name)
        return value
