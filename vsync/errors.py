"""Errors, sorted by blame: the caller's, the peer's bytes, the surroundings. All of them can be pickled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "Backpressure",
    "ConfigError",
    "ForkedProcess",
    "FrameError",
    "MessageTooLarge",
    "NotConnected",
    "NotMember",
    "ProtocolError",
    "RecordingError",
    "RequestFailed",
    "StateDirectoryError",
    "TransportError",
    "VsyncError",
]


class VsyncError(Exception):
    """Root of everything this package raises on purpose."""


class ConfigError(VsyncError, ValueError):
    """A configuration file or value is wrong; the message names the key and the remedy."""


class StateDirectoryError(VsyncError, OSError):
    """The state directory cannot be used (unwritable, torn, another node's, in use)."""


class TransportError(VsyncError, OSError):
    """A transport could not be set up (port in use, address not allowed)."""


class NotConnected(VsyncError, ConnectionError):
    """There is no daemon at the other end; the message names the URL."""


class ForkedProcess(NotConnected):
    """A connection made before ``fork`` is used in the child: connect again there (API-R9)."""


class NotMember(VsyncError):
    """The process is not a member of the group it wants to use."""


class MessageTooLarge(VsyncError, ValueError):
    """A message exceeds ``MAX_MESSAGE`` bytes."""


class Backpressure(VsyncError):
    """The send queue is full; try again when the ring has carried some of it."""


class RecordingError(VsyncError):
    """A file is no recording of the flight recorder, or a damaged one, or cannot be written or replayed."""


class FrameError(VsyncError):
    """A peer's bytes make no sense. They are dropped and counted; nothing else happens."""


class ProtocolError(VsyncError):
    """A local client's or daemon's bytes on the Unix socket make no sense; the connection is closed."""


class RequestFailed(VsyncError):
    """The daemon refused a request. ``code`` is a stable word for programs, the text is for people; ``more`` holds
    what else the service said.
    """

    def __init__(self, code: str, message: str = "", more: Mapping[str, Any] | None = None) -> None:
        super().__init__(code, message, *([dict(more)] if more else []))
        self.code = code
        self.message = message
        self.more: dict[str, Any] = dict(more or {})

    def __str__(self) -> str:
        return f"{self.message or self.code}"
