"""Reading the arguments of requests: each function raises ``BadArgument`` with a sentence for people.

What is refused here is refused at once, and nothing else follows (locks.md §1.7); ``rule`` names the rule there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlm.modes import (
    ALTCW,
    ALTPR,
    CACHE,
    CANCEL,
    CONVDEADLK,
    EX,
    EXPEDITE,
    FORCEUNLOCK,
    HEADQUE,
    IVVALBLK,
    MAX_FENCES,
    NAMES,
    NL,
    NODLCKBLK,
    NODLCKWT,
    NOORDER,
    NOQUEUE,
    NOQUEUEBAST,
    NOTIFY,
    ORPHAN,
    PERSISTENT,
    PR,
    QUECVT,
    QUECVT_FROM,
    VALBLK,
    fences_flag,
)

__all__ = [
    "FLAGS", "MAX_NAME", "MAX_VALUE_LIMIT", "PERMISSIONS", "VALUE_LIMIT", "BadArgument", "cached", "check_convert",
    "check_lock", "check_together", "check_unlock", "deadline", "fails", "fences", "flags", "locks", "mode", "name",
    "number", "permissions", "prefix", "space", "value", "value_limit",
]  # fmt: skip

MAX_NAME = 64  #: bytes
PERMISSIONS = 0o660  #: of a lockspace, unless it is made otherwise
VALUE_LIMIT = 1024  #: bytes of a value block, unless its lockspace is made for longer ones
MAX_VALUE_LIMIT = 1 << 16

#: The flags of a request by the name of their argument (locks.md §1.6).
FLAGS = {
    "noqueue": NOQUEUE,
    "cancel": CANCEL,
    "valblk": VALBLK,
    "quecvt": QUECVT,
    "ivvalblk": IVVALBLK,
    "convdeadlk": CONVDEADLK,
    "persistent": PERSISTENT,
    "nodlckwt": NODLCKWT,
    "nodlckblk": NODLCKBLK,
    "expedite": EXPEDITE,
    "noqueuebast": NOQUEUEBAST,
    "headque": HEADQUE,
    "noorder": NOORDER,
    "orphan": ORPHAN,
    "altpr": ALTPR,
    "altcw": ALTCW,
    "forceunlock": FORCEUNLOCK,
    "blocking": NOTIFY,
    "cache": CACHE,
}
_WITH_CACHE = CACHE | NOQUEUE | VALBLK | NOTIFY  #: a cached lock takes no other flags


class BadArgument(Exception):
    """An argument that cannot be meant. ``code`` is the code of the refusal."""

    def __init__(self, text: str, rule: str = "", code: str = "invalid") -> None:
        super().__init__(text)
        self.rule = rule
        self.code = code


def cached(args: Mapping[str, Any], wanted: bool) -> Mapping[str, Any]:
    """A request that left it to the node whether its lock is cached."""
    return {**args, "cache": True, "blocking": True} if wanted else {**args, "cache": False, "fences": 1}


def flags(args: Mapping[str, Any]) -> int:
    """The flags of a request as a bit set."""
    return sum(FLAGS[word] for word, given in args.items() if given and word in FLAGS)


def check_lock(args: Mapping[str, Any], asked: int, given: int) -> None:
    """A new request (E3–E5, E13)."""
    _no_trees(args)
    _refuse(given & CANCEL, "E3", "cancel belongs to unlock")
    _refuse(given & QUECVT, "E4", "quecvt needs a conversion")
    _refuse(given & CONVDEADLK, "E4", "convdeadlk needs a conversion")
    _refuse(given & EXPEDITE and given & NOQUEUE, "E5", "expedite excludes noqueue")
    _refuse(given & EXPEDITE and asked != NL, "E5", "expedite is for mode NL only")
    if given & CACHE:
        _refuse(asked < PR, "", "cache is for the modes PR, PW and EX")
        _refuse(given & ~_WITH_CACHE or not given & NOTIFY, "", "cache needs blocking, and takes no other flags")


def check_together(given: int) -> None:
    """The flags of a multi-lock: those that concern all of its locks alike, and change no place in a queue."""
    wrong = given & ~(NOQUEUE | VALBLK | NODLCKWT | NODLCKBLK | NOTIFY)
    words = ", ".join(word for word, bit in FLAGS.items() if bit & wrong)
    _refuse(wrong, "", f"a multi-lock takes no {words}")


def check_convert(args: Mapping[str, Any], held: int, asked: int, given: int) -> None:
    """A conversion of an idle lock (E3–E5, E9, E13)."""
    _no_trees(args)
    _refuse(given & CANCEL, "E3", "cancel belongs to unlock")
    _refuse(given & CONVDEADLK and given & NOQUEUE, "E4", "convdeadlk excludes noqueue")
    _refuse(given & EXPEDITE, "E5", "expedite is for new requests")
    _refuse(given & ORPHAN, "P3", "an orphan is adopted by a new request")
    _refuse(given & CACHE, "", "cache is for new requests")
    unfit = given & QUECVT and asked not in QUECVT_FROM[held]
    _refuse(unfit, "E9", f"quecvt is not for a conversion from {NAMES[held]} to {NAMES[asked]}")


def check_unlock(given: int) -> None:
    """An unlock or cancel (E20)."""
    _refuse(given & ~(CANCEL | VALBLK | IVVALBLK | FORCEUNLOCK), "E20", "unlock takes no such flag")
    _refuse(given & CANCEL and given & FORCEUNLOCK, "E20", "cancel excludes forceunlock")


def _refuse(wrong: object, rule: str, text: str) -> None:
    if wrong:
        raise BadArgument(text, rule)


def _no_trees(args: Mapping[str, Any]) -> None:
    for word in ("parent", "range"):
        if args.get(word) is not None:
            raise BadArgument(f"locks have no {word} here", "E13", "not_supported")


def number(args: Mapping[str, Any], key: str, least: int, default: int | None = None) -> int:
    """A whole number of at least ``least``."""
    found = args.get(key, default)
    if type(found) is not int or not least <= found < 1 << 63:
        raise BadArgument(f"{key} must be a number of at least {least}")
    return found


def fails(args: Mapping[str, Any]) -> bool:
    """Whether the caller prefers an error to waiting for the primary component."""
    found = args.get("no_quorum", "wait")
    if found not in ("wait", "fail"):
        raise BadArgument("no_quorum must be 'wait' or 'fail'")
    return bool(found == "fail")


def fences(args: Mapping[str, Any], given: int) -> int:
    """How many fence numbers a request with these flags wants, as flag bits."""
    found = number(args, "fences", 1, 1)
    if found > MAX_FENCES or found & (found - 1) or (found > 1 and not given & CACHE):
        raise BadArgument(f"fences is for cache, and a power of two of at most {MAX_FENCES}")
    return fences_flag(found)


def locks(args: Mapping[str, Any], most: int) -> list[tuple[bytes, int]]:
    """The names of a multi-lock, each with its mode, sorted by name."""
    rows = args.get("locks")
    if not isinstance(rows, list | tuple) or not 1 <= len(rows) <= most:
        raise BadArgument(f"locks must be a list of 1..{most} names and modes")
    found: dict[bytes, int] = {}
    for row in rows:
        if not isinstance(row, list | tuple) or len(row) != 2:
            raise BadArgument("locks must be a list of names and modes")
        one = {"name": row[0], "mode": row[1]}
        if name(one) in found:
            raise BadArgument("a multi-lock has each name once")
        found[name(one)] = mode(one)
    return sorted(found.items())


def deadline(args: Mapping[str, Any], now: int) -> int:
    """When the request gives up waiting (``timeout_us`` from now); 0 if it waits for ever."""
    timeout = number(args, "timeout_us", 0, 0)
    return now + timeout if timeout else 0


def mode(args: Mapping[str, Any]) -> int:
    """One of the six modes."""
    found = args.get("mode")
    if type(found) is not int or not NL <= found <= EX:
        raise BadArgument("mode must be 0 (NL) .. 5 (EX)", "E1")
    return found


def name(args: Mapping[str, Any]) -> bytes:
    """The name of a resource: any bytes, but some."""
    found = args.get("name")
    found = found.encode() if isinstance(found, str) else found
    if not isinstance(found, bytes) or not 1 <= len(found) <= MAX_NAME:
        raise BadArgument(f"name must be 1..{MAX_NAME} bytes", "E2")
    return found


def prefix(args: Mapping[str, Any], key: str = "prefix") -> bytes:
    """The beginning of names to list, or (``after``) the name they come after; may be empty or absent."""
    found = args.get(key, b"")
    found = found.encode() if isinstance(found, str) else found
    if not isinstance(found, bytes):
        raise BadArgument(f"{key} must be bytes")
    return found


def space(args: Mapping[str, Any]) -> str:
    """The lockspace; ``default`` if absent."""
    found = args.get("space", "default")
    if not isinstance(found, str) or not 1 <= len(found.encode()) <= MAX_NAME or "\0" in found:
        raise BadArgument(f"space must be 1..{MAX_NAME} bytes of text", "E11")
    return found


def value(args: Mapping[str, Any], limit: int) -> bytes | None:
    """The caller's value block, if it sent one; ``limit`` is that of the lockspace."""
    found = args.get("value")
    if found is not None and (not isinstance(found, bytes) or len(found) > limit):
        raise BadArgument(f"value must be at most {limit} bytes, the value_limit of its lockspace", "E7")
    return found


def permissions(args: Mapping[str, Any]) -> int:
    """Who may open a lockspace, as the mode of a file."""
    found = number(args, "permissions", 0, PERMISSIONS)
    if found > 0o777:
        raise BadArgument("permissions must be 0 .. 0o777")
    return found


def value_limit(args: Mapping[str, Any]) -> int:
    """How long the value blocks of a lockspace may be."""
    found = number(args, "value_limit", 1, VALUE_LIMIT)
    if found > MAX_VALUE_LIMIT:
        raise BadArgument(f"value_limit must be at most {MAX_VALUE_LIMIT} bytes")
    return found
