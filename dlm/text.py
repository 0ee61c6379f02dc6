"""Names are bytes on the wire, and str or bytes for people."""

from __future__ import annotations

__all__ = ["name_bytes", "name_text"]


def name_bytes(name: str | bytes) -> bytes:
    """Names are str (taken as UTF-8) or bytes, and bytes inside (API-R10). Raises ``TypeError`` for the
    rest.
    """
    if isinstance(name, str):
        return name.encode()
    if isinstance(name, bytes):
        return name
    raise TypeError(f"a lock's name is str or bytes, not {type(name).__name__}")


def name_text(name: bytes) -> str:
    """The name for people and JSON; bytes that are not UTF-8 appear as ``\\xff``."""
    return name.decode(errors="backslashreplace")
