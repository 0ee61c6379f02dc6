"""Frames on the Unix socket between a daemon and its clients: a 4-byte big-endian length, then msgpack."""

from __future__ import annotations

from typing import Any

import msgpack

from vsync.errors import ProtocolError

__all__ = ["MAX_IPC_FRAME", "PROTOCOL_VERSION", "Decoder", "encode"]

MAX_IPC_FRAME = 2 << 20  #: bytes without the length; twice the largest message: listings are long
PROTOCOL_VERSION = 1

_HEAD = 4


def encode(frame: Any) -> bytes:
    """The bytes of one frame.

    Raises ``ProtocolError`` if it would be too long, ``TypeError`` or ``ValueError`` if msgpack cannot
    express it.
    """
    body: bytes = msgpack.packb(frame)
    if len(body) > MAX_IPC_FRAME:
        raise ProtocolError(f"a frame of {len(body)} bytes; at most {MAX_IPC_FRAME} are allowed")
    return len(body).to_bytes(_HEAD, "big") + body


class Decoder:
    """Takes bytes as they come and gives whole frames. Lazy, so that a reader can bound its work per turn."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0

    def feed(self, data: bytes) -> None:
        """Append what was received."""
        if self._at:
            del self._data[: self._at]
            self._at = 0
        self._data += data

    def has_frame(self) -> bool:
        """Whether ``next`` would give a frame (or raise)."""
        rest = len(self._data) - self._at - _HEAD
        if rest < 0:
            return False
        size = int.from_bytes(self._data[self._at : self._at + _HEAD], "big")
        return rest >= size or size > MAX_IPC_FRAME

    def next(self) -> Any:
        """The next frame, ``None`` if there is none yet. Raises ``ProtocolError`` for nonsense."""
        start = self._at + _HEAD
        if len(self._data) < start:
            return None
        size = int.from_bytes(self._data[self._at : start], "big")
        if size > MAX_IPC_FRAME:
            raise ProtocolError(f"a frame of {size} bytes is announced; at most {MAX_IPC_FRAME} are allowed")
        end = start + size
        if len(self._data) < end:
            return None
        body = self._data[start:end]
        self._at = end
        return _decoded(body)


def _decoded(body: bytearray) -> list[Any]:
    try:
        frame = msgpack.unpackb(body, strict_map_key=False)
    # msgpack raises whatever its parts raise: bad UTF-8, unhashable keys, too deep nesting, trailing bytes
    except (ValueError, TypeError, RecursionError, MemoryError, msgpack.UnpackException) as e:
        raise ProtocolError(f"bytes that are no msgpack: {e or type(e).__name__}") from e
    if not isinstance(frame, list):
        raise ProtocolError(f"a frame must be an array, not {type(frame).__name__}")
    return frame
