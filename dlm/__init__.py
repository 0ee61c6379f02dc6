"""A distributed lock manager over virtual synchrony: six modes, conversions, value blocks, fencing tokens.

>>> import dlm
>>> with dlm.connect() as locks:                       # doctest: +SKIP
...     with locks.lock("reports/nightly", timeout=10) as held:
...         print(held.fence)
"""

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
)
from dlm.events import HeldAt, LockEvent, NameHistory
from dlm.held import Held, Loss
from dlm.info import Flag, Holder, LockInfo, Mode, Outcome
from dlm.lockspace import Lockspace
from dlm.reasons import Blocker, Party, Wait, Why, Withheld
from dlm.recipes import Barrier, Counter, Election, Semaphore
from dlm.status import Lksb, Status
from dlm.together import HeldAll, LockAll
from dlm.transaction import Transaction

__all__ = [
    "Barrier",
    "Blocker",
    "Client",
    "ConfigError",
    "Counter",
    "DLMError",
    "Deadlock",
    "Election",
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
    "Semaphore",
    "SpaceBusy",
    "SpaceExists",
    "SpaceInfo",
    "Status",
    "Transaction",
    "Wait",
    "Waiting",
    "Why",
    "Withheld",
    "connect",
]
