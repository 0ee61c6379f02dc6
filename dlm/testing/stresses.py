"""Short runs that are hard on one part of the lock manager: faults and clients for the mutants (``mutants``).

Timers are a tenth of the usual ones, so a lease is 200 ms and a view takes a few milliseconds to make; clients come
back every few milliseconds. Names in capitals are options of the run, those in small letters are its clients.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dlm.modes import EX, MODES
from dlm.testing.workload import LockOptions, LockPlugin
from vsync.testing.hunt import Plugins
from vsync.testing.mutants import Stress
from vsync.testing.options import LinkOptions, scaled

__all__ = [
    "AWAY",
    "BLIPS",
    "BLIPS_FAR",
    "CALM",
    "CALM_5",
    "CUT_OFF",
    "DEATHS",
    "DRIFT",
    "LEAVES",
    "PARTS_5",
    "PAUSES",
    "RESTARTS",
    "SLOW_TOKEN",
    "busy",
    "claiming",
    "ending",
    "flagged",
    "holding",
    "keeping",
    "keeping_late",
    "queueing",
    "reading_late",
    "sharing",
    "unheard",
    "unheard_at_rest",
    "visiting",
]


def _stress(nodes: int = 3, fault_interval: int = 60_000, **more: Any) -> Stress:
    base = {"timing": scaled(0.1), "chaos": 1_000_000, "send_interval": 100_000}
    return tuple({**base, "nodes": nodes, "fault_interval": fault_interval, **more}.items())


_CUT = LinkOptions(cut_in_flight=True)
_LOSSY = LinkOptions(cut_in_flight=True, loss=0.05)

#: All links fail again and again, for less or more than it takes to notice: halves freeze and meet again.
BLIPS = _stress(partition=3, one_way=1, links=_LOSSY)
#: The same over long ways, with a token that never lingers: what is composed waits for it.
BLIPS_FAR = _stress(
    partition=3,
    one_way=1,
    timing=replace(scaled(0.1), linger=0),
    links=replace(_LOSSY, delay_low=2_000, delay_high=6_000),
)
#: Five nodes: parts with and without a majority, each with another part of what was sent last.
PARTS_5 = _stress(nodes=5, partition=1, links=replace(_LOSSY, loss=0.1))
#: Nodes that are away for so long that others go on without them, and come back, also with an old ring.
AWAY = _stress(partition=1, pause=2, links=_CUT)
#: Nodes that stand still for a while, and nothing else.
PAUSES = _stress(pause=1, fault_interval=80_000)
#: One part goes on alone, long enough for its leases and everybody's.
CUT_OFF = _stress(partition=1, fault_interval=400_000, chaos=1_500_000)
#: Daemons die, which is noticed at once: their clients count on their leases still.
DEATHS = _stress(crash=1, evidence=1.0, fault_interval=100_000, links=_CUT)
#: Daemons that come back at once, without their tables, to whom is cut off or not.
RESTARTS = _stress(crash=2, partition=3, fast_restart=1.0, fault_interval=50_000, links=_CUT)
#: Nodes leave as they should.
LEAVES = _stress(leave=1, fault_interval=100_000)
#: The token takes longer from node to node than a horizon is longer than a lease.
SLOW_TOKEN = _stress(
    timing=scaled(0.2),
    chaos=2_000_000,
    crash=1,
    pause=1,
    evidence=1.0,
    fault_interval=150_000,
    links=LinkOptions(delay_low=15_000, delay_high=20_000),
)
#: Clocks as different as they may be, and a token that is never late, so that nothing else is left between a lease
#: and the horizon.
DRIFT = _stress(
    timing=replace(scaled(0.2), hold=1_000, linger=200),
    drift_ppm=10_000,
    crash=1,
    evidence=1.0,
    fault_interval=200_000,
    links=LinkOptions(delay_low=50, delay_high=100),
)
#: Little else than what the clients bring about (``unheard``, ``claiming``).
CALM = _stress(partition=1, fault_interval=3_000_000)
CALM_5 = _stress(nodes=5, partition=1, fault_interval=3_000_000)


def _clients(clients: int = 2, names: int = 3, interval: int = 15_000, **more: Any) -> Plugins:
    """They want EX, of names that all use, which change hands at once; and read what they are told at once."""
    base = {"own": 0.0, "end": 0.0, "late": 0, "modes": (EX,), "contended": 20_000, "idle": 20_000}
    options = LockOptions(clients, names, interval, **{**base, **more})
    return lambda seed: (LockPlugin(seed, options),)


busy = _clients()
#: Half of the names belong to one node's clients.
sharing = _clients(own=0.5)
#: Many wait at the owner of a name, so long that it may be cut off and come back meanwhile, before it yields.
queueing = _clients(clients=3, names=1, interval=20_000, own=1.0, contended=30_000)
#: Clients end suddenly, while names change hands.
ending = _clients(end=0.15, contended=5_000)
#: All modes, all flags, orphans, and others who purge them.
flagged = _clients(flags=0.15, modes=MODES, end=0.1)
#: They keep what they have for half a lease.
holding = _clients(interval=100_000)
#: So do these, and read late what they are told.
reading_late = _clients(interval=100_000, late=500_000)
#: Names are claimed and given back all the time; daemons die right after that.
claiming = _clients(idle=1_000, sudden=0.05)
#: Now this node, now that one uses a name and gives it back.
visiting = _clients(clients=1, names=6, interval=8_000, idle=500)
#: For a moment nobody hears what a node says, then it is cut off, or dies (``dlm.testing.unheard``).
unheard = _clients(names=2, interval=10_000, unheard=60_000)
#: The same with names that mostly nobody holds.
unheard_at_rest = _clients(clients=1, names=2, interval=8_000, idle=500, unheard=40_000)
#: They keep all locks after their release, and take them again.
keeping = _clients(interval=6_000, keeping=1.0, idle=200_000, contended=5_000)
#: So do these, and read late what they are told.
keeping_late = _clients(interval=10_000, keeping=1.0, idle=2_000_000, late=500_000)
