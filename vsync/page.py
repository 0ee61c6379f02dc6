"""The deadline page: how a daemon tells a client, without a call, until when its locks are valid.

One small file per session, mapped by both. The daemon writes (generation, deadline); the client reads it
as often as it likes, at the cost of a few memory accesses. When the daemon dies or is stopped, nobody
moves the deadline on, and it passes: that is the point (pitfalls K10, design §5.4).

Layout, native 64-bit words: magic, version of the content (odd while it is written: a seqlock), generation,
deadline in µs of CLOCK_BOOTTIME, check word. The check word makes a mix of two writes visible on machines
that reorder stores, where the version alone would not.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path

from vsync.errors import VsyncError

__all__ = ["Page", "PageError", "PageReader"]

_MAGIC = int.from_bytes(b"vsyncpg1", "little")
_SIZE = mmap.PAGESIZE
_MAGIC_AT, _VERSION, _GENERATION, _DEADLINE, _CHECK = range(5)
_MASK = (1 << 64) - 1
_TRIES = 1000  # a write takes about a microsecond; a writer stopped in its middle must not hang readers


class PageError(VsyncError, OSError):
    """A deadline page is missing, unreadable or not one."""


def _check(version: int, generation: int, deadline: int) -> int:
    return (version * 0x9E3779B97F4A7C15 ^ generation * 0xC2B2AE3D27D4EB4F ^ deadline) & _MASK


class Page:
    """The writer's side, made anew at ``path`` with (0, 0). One thread writes."""

    def __init__(self, path: str | os.PathLike[str], uid: int | None = None) -> None:
        """``uid``: who may read it besides the daemon's own user (given to that user if we are root)."""
        self.path = Path(path)
        self.path.unlink(missing_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(fd, _SIZE)
            self._map = mmap.mmap(fd, _SIZE)
            if uid is not None and uid != os.geteuid():
                # Only root may give files away; otherwise let everybody read: there is nothing but a time
                # in it.
                os.fchmod(fd, 0o400)
                try:
                    os.fchown(fd, uid, -1)
                except PermissionError:
                    os.fchmod(fd, 0o444)
        finally:
            os.close(fd)
        self._words = memoryview(self._map).cast("Q")
        self._words[_CHECK] = _check(0, 0, 0)
        self._words[_MAGIC_AT] = _MAGIC
        self._open = True

    def write(self, generation: int, deadline: int) -> None:
        """Publish both at once; readers see either the old or the new pair."""
        words = self._words
        version = words[_VERSION]
        words[_VERSION] = (version + 1) & _MASK
        words[_GENERATION] = generation
        words[_DEADLINE] = deadline
        words[_CHECK] = _check((version + 2) & _MASK, generation, deadline)
        words[_VERSION] = (version + 2) & _MASK

    def close(self) -> None:
        """Publish (0, 0) – nothing is valid any more – and remove the file. Idempotent."""
        if self._open:
            self._open = False
            self.write(0, 0)
            self._words.release()
            self._map.close()
            self.path.unlink(missing_ok=True)


class PageReader:
    """The reader's side. Raises ``PageError`` on construction if the page cannot be read."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            fd = os.open(path, os.O_RDONLY)
            try:
                if os.fstat(fd).st_size < _SIZE:
                    raise PageError(f"{os.fspath(path)} is not a deadline page: too short")
                self._map = mmap.mmap(fd, _SIZE, prot=mmap.PROT_READ)
            finally:
                os.close(fd)
        except PageError:
            raise
        except OSError as e:
            raise PageError(f"the deadline page {os.fspath(path)} cannot be read: {e.strerror}") from e
        self._words = memoryview(self._map).cast("Q")
        if self._words[_MAGIC_AT] != _MAGIC:
            self.close()
            raise PageError(f"{os.fspath(path)} is not a deadline page: bad magic")

    def read(self) -> tuple[int, int]:
        """(generation, deadline); (0, 0) if no whole pair can be had, which means: nothing is valid."""
        words = self._words
        for _ in range(_TRIES):
            version = words[_VERSION]
            if version & 1:
                continue
            generation, deadline, check = words[_GENERATION], words[_DEADLINE], words[_CHECK]
            if words[_VERSION] == version and check == _check(version, generation, deadline):
                return generation, deadline
        return 0, 0

    def close(self) -> None:
        """Unmap. Idempotent; ``read`` must not be called afterwards."""
        with contextlib.suppress(ValueError):
            self._words.release()
        self._map.close()
