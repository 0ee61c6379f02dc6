"""The one place that reads clocks.

Engine time is CLOCK_BOOTTIME in microseconds: it also runs while the machine is suspended, so a lease does
not outlive a laptop lid (pitfalls K10), and every process of a host reads the same value, so that a
deadline can be shared as an absolute number.
"""

from __future__ import annotations

import time

__all__ = ["EPOCH_2024_S", "boot_us", "first_ring_seq", "wall_us"]

EPOCH_2024_S = 1_704_067_200  #: 2024-01-01T00:00:00Z in seconds since 1970

_read_ns, _BOOT = time.clock_gettime_ns, time.CLOCK_BOOTTIME  # looked up once: every use of a lock reads it


def boot_us() -> int:
    """Microseconds since boot, time in suspend included."""
    return _read_ns(_BOOT) // 1_000


def wall_us() -> int:
    """Microseconds since 1970. Only for names that must be new (incarnations), never for timers."""
    return time.time_ns() // 1_000


def first_ring_seq() -> int:
    """Where the ring sequence starts on a node without a record: seconds since 2024 (design §4).

    A disk that was lost then does not bring back ring ids, and so fencing tokens, that were used before.
    """
    return max(1, wall_us() // 1_000_000 - EPOCH_2024_S)
