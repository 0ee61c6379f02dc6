"""How many locks hold each mode, in one number: for a name with one EX lock, of which there may be millions, 1.

Each mode has a field of the number. Two that exclude themselves have few bits, and the lowest, as there is never
more than one of them; the others have room for more locks than there can be.
"""

from __future__ import annotations

from dlm.modes import CONFLICTING, CR, CW, EX, NL, NONE, PR, PW

__all__ = ["BARS", "UNITS", "count", "highest"]

_FIELDS = {EX: (0, 4), PW: (4, 4), PR: (8, 24), CW: (32, 24), CR: (56, 24), NL: (80, 24)}  #: lowest bit, bits


def _mask(mode: int) -> int:
    start, bits = _FIELDS[mode]
    return (1 << bits) - 1 << start


#: What one lock adds to the number, by its mode; ``UNITS[NONE]`` is 0.
UNITS = (*(1 << _FIELDS[mode][0] for mode in range(NL, EX + 1)), 0)

#: ``BARS[asked]``: the fields that must be empty, but for the lock's own part, if that mode is to be granted.
BARS = tuple(sum(_mask(mode) for mode in modes) for modes in CONFLICTING)


def count(held: int, mode: int) -> int:
    """How many locks hold this mode."""
    return (held & _mask(mode)) >> _FIELDS[mode][0]


def highest(held: int) -> int:
    """The highest mode that any lock holds, NONE if there is none."""
    return next((mode for mode in range(EX, NONE, -1) if count(held, mode)), NONE)
