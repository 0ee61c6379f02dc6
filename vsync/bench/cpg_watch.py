"""``python -m vsync.bench.cpg_watch``: join a process group of corosync and print its members at every change.

One JSON list ``[boot-clock µs, [node ids]]`` a line. Waits until the daemon is there. Calls libcpg directly, so
that nothing has to be compiled.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from typing import Any

from vsync.clock import boot_us

__all__ = ["main"]

CS_OK = 1
CS_DISPATCH_BLOCKING = 3
GROUP = b"vsync-bench"
RETRY_S = 0.01


class _Name(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint32), ("value", ctypes.c_char * 128))


class _Address(ctypes.Structure):
    _fields_ = (("node", ctypes.c_uint32), ("pid", ctypes.c_uint32), ("reason", ctypes.c_uint32))


_Addresses = ctypes.POINTER(_Address)
_Changed = ctypes.CFUNCTYPE(
    None, ctypes.c_uint64, ctypes.POINTER(_Name), _Addresses, ctypes.c_size_t, _Addresses, ctypes.c_size_t,
    _Addresses, ctypes.c_size_t,
)  # fmt: skip


class _Callbacks(ctypes.Structure):
    _fields_ = (("deliver", ctypes.c_void_p), ("changed", _Changed))


def main() -> int:
    """Until the daemon goes away. Returns the exit code."""
    try:
        cpg = ctypes.CDLL("libcpg.so.4")
    except OSError as e:
        print(f"cpg_watch: {e}", file=sys.stderr)
        return 1

    def changed(handle: int, name: Any, members: Any, count: int, *rest: Any) -> None:
        print(json.dumps([boot_us(), sorted(members[i].node for i in range(count))]), flush=True)

    callbacks = _Callbacks(None, _Changed(changed))
    group = _Name(len(GROUP), GROUP)
    handle = ctypes.c_uint64()
    while cpg.cpg_initialize(ctypes.byref(handle), ctypes.byref(callbacks)) != CS_OK:
        time.sleep(RETRY_S)
    while cpg.cpg_join(handle, ctypes.byref(group)) != CS_OK:
        time.sleep(RETRY_S)
    return 0 if cpg.cpg_dispatch(handle, CS_DISPATCH_BLOCKING) == CS_OK else 1


if __name__ == "__main__":
    sys.exit(main())
