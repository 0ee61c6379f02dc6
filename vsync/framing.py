"""Frames on the Unix socket between a daemon and its clients: a 4-byte big-endian length, then msgpack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack

from vsync.errors import ProtocolError

__all__ = ["MAX_IPC_FRAME", "PROTOCOL_VERSION", "Decoder", "Inbox", "encode"]

MAX_IPC_FRAME = 2 << 20  #: bytes without the length; twice the largest message: listings are long
PROTOCOL_VERSION = 1

_HEAD = 4
_LONG = 1 << 12  # bytes; fewer are copied more quickly than looked at through a view


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
            raise _too_long(size)
        end = start + size
        if len(self._data) < end:
            return None
        self._at = end
        if size < _LONG:
            return _decoded(self._data[start:end])
        with memoryview(self._data) as data, data[start:end] as body:
            return _decoded(body)


class Inbox:
    """Whole frames from a socket, each looked at before it is taken.

    For a reader that an exception may interrupt between any two steps, such as ``KeyboardInterrupt``: every method
    changes what is here in one step, or not at all. Not thread-safe.
    """

    def __init__(self) -> None:
        #: What was received, where in it the next frame begins, and that one's number.
        self._state: tuple[list[bytes], int, int] = ([], 0, 1)
        self._end = 0  # of the frame that was looked at

    def fill(self, receive: Callable[[int], bytes], size: int) -> bool:
        """Append what ``receive(size)`` gives; false if that is nothing."""
        chunks = self._state[0]
        # Not append(receive(size)): between the two an interrupt would lose what was received.
        chunks.extend(map(receive, (size,)))
        return bool(chunks[-1])

    def peek(self) -> Any:
        """The next frame, ``None`` if there is none yet. Raises ``ProtocolError`` for nonsense."""
        chunks, at, _ = self._state
        if not chunks:
            return None
        data, start = chunks[0], at + _HEAD
        if len(chunks) > 1 and len(data) < start:
            data = self._join()
        if len(data) < start:
            return None
        size = int.from_bytes(data[at:start], "big")
        if size > MAX_IPC_FRAME:
            raise _too_long(size)
        end = self._end = start + size
        if len(data) < end:
            if sum(map(len, chunks)) < end:
                return None  # joined when it is whole: a long one comes in many pieces
            data = self._join()
        return _decoded(data[start:end] if size < _LONG else memoryview(data)[start:end])

    def _join(self) -> bytes:
        chunks, at, number = self._state
        data = b"".join(chunks)
        self._state = [data], at, number
        return data

    def take(self) -> None:
        """The frame that was looked at is done with; another must be looked at before the next ``take``."""
        (chunks, _, number), end = self._state, self._end
        self._state = (chunks, end, number + 1) if end < len(chunks[0]) else (chunks[1:], 0, number + 1)

    @property
    def number(self) -> int:
        """Of the next frame, from 1 on."""
        return self._state[2]


def _decoded(body: bytes | bytearray | memoryview) -> list[Any]:
    try:
        frame = msgpack.unpackb(body, strict_map_key=False)
    # msgpack raises whatever its parts raise: bad UTF-8, unhashable keys, too deep nesting, trailing bytes
    except (ValueError, TypeError, RecursionError, MemoryError, msgpack.UnpackException) as e:
        raise ProtocolError(f"bytes that are no msgpack: {e or type(e).__name__}") from e
    if not isinstance(frame, list):
        raise ProtocolError(f"a frame must be an array, not {type(frame).__name__}")
    return frame


def _too_long(size: int) -> ProtocolError:
    return ProtocolError(f"a frame of {size} bytes is announced; at most {MAX_IPC_FRAME} are allowed")
