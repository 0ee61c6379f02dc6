"""Reading the arguments of requests: each function raises ``BadArgument`` with a sentence for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlm.modes import EX, NOQUEUE, VALBLK

__all__ = ["MAX_NAME", "MAX_VALUE", "BadArgument", "flags", "mode", "name", "number", "prefix", "space", "value"]

MAX_NAME = 64  #: bytes
MAX_VALUE = 1024  #: bytes


class BadArgument(Exception):
    """An argument that cannot be meant."""


def number(args: Mapping[str, Any], key: str, least: int, default: int | None = None) -> int:
    """A whole number of at least ``least``."""
    found = args.get(key, default)
    if type(found) is not int or not least <= found < 1 << 63:
        raise BadArgument(f"{key} must be a number of at least {least}")
    return found


def mode(args: Mapping[str, Any]) -> int:
    """One of the six modes."""
    found = number(args, "mode", 0)
    if found > EX:
        raise BadArgument("mode must be 0 (NL) .. 5 (EX)")
    return found


def name(args: Mapping[str, Any]) -> bytes:
    """The name of a resource: any bytes, but some."""
    found = args.get("name")
    found = found.encode() if isinstance(found, str) else found
    if not isinstance(found, bytes) or not 1 <= len(found) <= MAX_NAME:
        raise BadArgument(f"name must be 1..{MAX_NAME} bytes")
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
        raise BadArgument(f"space must be 1..{MAX_NAME} bytes of text")
    return found


def flags(args: Mapping[str, Any]) -> int:
    """The flags that requests may carry so far, as a bit set (locks.md §1.6)."""
    return (NOQUEUE if args.get("noqueue") else 0) | (VALBLK if args.get("valblk") else 0)


def value(args: Mapping[str, Any]) -> bytes | None:
    """The caller's value block, if it sent one."""
    found = args.get("value")
    if found is not None and (not isinstance(found, bytes) or len(found) > MAX_VALUE):
        raise BadArgument(f"value must be at most {MAX_VALUE} bytes")
    return found
