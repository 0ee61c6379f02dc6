"""The six lock modes and everything that is a table about them (locks.md §1.1, §1.5, §1.6, §1.9).

Modes are small integers, NL=0 .. EX=5; ``NONE`` (-1) stands for "no lock yet". PR and CW are of equal
severity but not ordered: a change between them is a *middle conversion*, neither up nor down (M2).
"""

from __future__ import annotations

__all__ = [
    "ALTCW", "ALTERNATIVES", "ALTMODE", "ALTPR", "CACHE", "CANCEL", "COMPATIBLE", "CONFLICTING", "CONVDEADLK",
    "CONVERT", "CR", "CW", "DEMOTED", "EX", "EXPEDITE", "FORCEUNLOCK", "HEADQUE", "IVVALBLK", "MAX_FENCES",
    "MODES", "NAMES", "NL", "NODLCKBLK", "NODLCKWT", "NONE", "NOORDER", "NOQUEUE", "NOQUEUEBAST", "NOTIFY",
    "ORPHAN", "PERSISTENT", "PR", "PW", "QUECVT", "QUECVT_FROM", "READS", "TIMEOUT", "VALBLK", "VALNOTVALID",
    "WRITES", "fences_flag", "fences_of", "is_down", "is_middle", "value_direction",
]  # fmt: skip

NONE = -1
NL, CR, CW, PR, PW, EX = range(6)
MODES = (NL, CR, CW, PR, PW, EX)
NAMES = ("NL", "CR", "CW", "PR", "PW", "EX")

# Flags, with the bit values of dlmconstants.h (locks.md §1.6).
NOQUEUE = 0x1
CANCEL = 0x2
CONVERT = 0x4
VALBLK = 0x8
QUECVT = 0x10
IVVALBLK = 0x20
CONVDEADLK = 0x40
PERSISTENT = 0x80
NODLCKWT = 0x100
NODLCKBLK = 0x200
EXPEDITE = 0x400
NOQUEUEBAST = 0x800
HEADQUE = 0x1000
NOORDER = 0x2000
ORPHAN = 0x4000
ALTPR = 0x8000
ALTCW = 0x10000
FORCEUNLOCK = 0x20000
TIMEOUT = 0x40000  #: of a cancel: nobody asked for it, the time of the request is over
NOTIFY = 0x1000000  #: ours: the session wants to be told whom the lock blocks (elsewhere: a BAST function is given)
CACHE = 0x2000000  #: ours: its client may keep the lock while nobody uses it (``dlm.tries``)
_FENCES = 26  #: four bits from here on: how many fence numbers it wants with the grant, as the power of two
MAX_FENCES = 1024

# What an outcome may say besides (the flags of a status block); none outlives its operation.
DEMOTED = 0x1  #: the conversion gave up its old mode meanwhile (CONVDEADLK)
VALNOTVALID = 0x2  #: the value block is not valid (L5)
ALTMODE = 0x4  #: granted in the mode of ALTPR or ALTCW, not in the one asked for

#: ``COMPATIBLE[held][asked]`` (symmetric, M1).
COMPATIBLE: tuple[tuple[bool, ...], ...] = (
    (True, True, True, True, True, True),
    (True, True, True, True, True, False),
    (True, True, True, False, False, False),
    (True, True, False, True, False, False),
    (True, True, False, False, False, False),
    (True, False, False, False, False, False),
)

#: ``CONFLICTING[asked]``: the modes that must not be held by another lock.
CONFLICTING: tuple[tuple[int, ...], ...] = tuple(
    tuple(held for held in MODES if not COMPATIBLE[held][asked]) for asked in MODES
)

#: QUECVT is accepted only from the key to one of these modes (§1.5).
QUECVT_FROM: tuple[tuple[int, ...], ...] = (
    (CR, CW, PR, PW, EX),
    (CW, PR, PW, EX),
    (PR, PW, EX),
    (CW, PW, EX),
    (EX,),
    (),
)

#: The modes to try instead of the one asked for, in this order.
ALTERNATIVES = ((ALTPR, PR), (ALTCW, CW))

READS, WRITES = "R", "W"

# Rows: granted mode before (first row: new request); columns: mode after. R resource -> caller, W caller ->
# resource.
_VALUE = ("RRRRRR", "RRRRRR", ".RRRRR", "..RRRR", "...RRR", "WWWWWR", "WWWWWW")


def fences_flag(count: int) -> int:
    """The flag bits that ask for ``count`` fence numbers, a power of two."""
    return (count.bit_length() - 1) << _FENCES


def fences_of(flags: int) -> int:
    """How many fence numbers a request wants: 1 unless it says otherwise."""
    return min(1 << (flags >> _FENCES & 15), MAX_FENCES)


def is_middle(old: int, new: int) -> bool:
    """Whether old -> new is PR <-> CW (M2)."""
    return (old == PR and new == CW) or (old == CW and new == PR)


def is_down(old: int, new: int) -> bool:
    """Whether old -> new is a down-conversion, which always can be granted at once (M3)."""
    return new < old and not is_middle(old, new)


def value_direction(old: int, new: int) -> str:
    """``"R"``, ``"W"`` or ``"."``: what happens to the value block when the granted mode changes (§1.9)."""
    return _VALUE[old + 1][new]
