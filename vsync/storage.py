"""Stable storage of one node: a directory with a lock, an incarnation and the engine's record.

::

    <state_dir>/lock          held (flock) by the running daemon, contains its pid
    <state_dir>/incarnation   the number of this node's latest life
    <state_dir>/record        what the engine asked to persist: ring id, attempts, mark

The record is on disk before the commit token leaves (EVS-E6); it is written in place, in two slots
(``vsync.slots``). The incarnation is written beside, fsynced, and renamed over the old one. Each carries
its owner – cluster and node id – and a checksum. A file that is damaged or another node's is refused, never
guessed at: taking it would let a node forget a ring it took part in, or take part under another's name.

The pid in ``lock`` is for people; what counts is the lock on it, which ends with the process.
"""

from __future__ import annotations

import fcntl
import os
import struct
import weakref
import zlib
from pathlib import Path
from typing import Protocol

import msgpack

from vsync.clock import wall_us
from vsync.errors import StateDirectoryError
from vsync.slots import Damaged, Slots, blank

__all__ = ["MemoryStorage", "StateDirectory", "Storage"]

_MAGIC = b"vsync-1\n"
_REMEDY = "make it writable or set another state_dir"
_HEAD = struct.Struct(">8sII")  # magic, length of the body, CRC-32 of the body


class Storage(Protocol):
    """What a node needs of its storage. Used by one thread."""

    incarnation: int  #: of this life: larger than that of every former life
    record: bytes | None  #: the last record written by a former life

    def write(self, record: bytes) -> None:
        """Replace the record; it is on disk on return. Raises ``StateDirectoryError``."""
        ...

    def close(self) -> None:
        """Give the directory free. Idempotent."""
        ...


class MemoryStorage:
    """No disk: for embedded nodes and tests that can do without memory across restarts."""

    def __init__(self) -> None:
        self.incarnation = wall_us()
        self.record: bytes | None = None

    def write(self, record: bytes) -> None:
        """Keep the record until the process ends."""
        self.record = record

    def close(self) -> None:
        """Nothing to give free."""


class StateDirectory:
    """The state directory of node ``node`` in cluster ``cluster``; locked from construction to ``close``.

    A missing directory is made (mode 0700). Raises ``StateDirectoryError`` if it is in use, unwritable,
    torn, or belongs to another node or cluster; the message says which file and what to do.
    """

    def __init__(self, path: str | os.PathLike[str], cluster: str, node: int) -> None:
        self.path = Path(path)
        self._owner = [cluster, node]
        self._lock_fd, self._dir_fd = self._lock()
        self._slots: Slots | None = None
        try:
            self._slots = self._open_record()
            self.record = self._owned(self._slots.body) if self._slots.body is not None else None
            self.incarnation = self._next_incarnation()
        except BaseException:
            self.close()
            raise
        _open_directories.add(self)

    def write(self, record: bytes) -> None:
        """Replace the record; on disk on return. Raises ``StateDirectoryError`` (disk full, read-only, …)."""
        assert self._slots is not None
        try:
            self._slots.write(msgpack.packb([*self._owner, record]))
        except OSError as e:
            raise self._error(f"record cannot be written: {e.strerror or e}") from e

    def close(self) -> None:
        """Give the lock free. Idempotent."""
        if self._slots is not None:
            self._slots.close()
        for fd in (self._lock_fd, self._dir_fd):
            if fd >= 0:
                os.close(fd)
        self._lock_fd = self._dir_fd = -1

    def _lock(self) -> tuple[int, int]:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as e:
            raise self._error(f"cannot be used: {e.strerror}; {_REMEDY}") from e
        try:
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as e:
            os.close(directory)
            raise self._error(f"is not writable: {e.strerror}; {_REMEDY}") from e
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            os.close(directory)
            raise self._error(f"is in use by process {pid}; stop it or set another state_dir") from e
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        return fd, directory

    def _open_record(self) -> Slots:
        if not (self.path / "record").exists():
            self._replace("record", blank())
        try:
            fd = os.open("record", os.O_RDWR, dir_fd=self._dir_fd)
            try:
                return Slots(fd)
            except BaseException:
                os.close(fd)
                raise
        except OSError as e:
            raise self._error(f"record cannot be read: {e.strerror}") from e
        except Damaged as e:
            raise self._torn("record") from e

    def _next_incarnation(self) -> int:
        stored = self._load("incarnation")
        if stored is not None and len(stored) != 8:
            raise self._torn("incarnation")
        last = int.from_bytes(stored, "big") if stored else 0
        # The wall clock makes the number new even after the disk was lost; the stored one, after a clock
        # step.
        number = max(last + 1, wall_us())
        self._store("incarnation", number.to_bytes(8, "big"))
        return number

    def _load(self, name: str) -> bytes | None:
        try:
            data = (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as e:
            raise self._error(f"{name} cannot be read: {e.strerror}") from e
        if len(data) < _HEAD.size:
            raise self._torn(name)
        magic, length, checksum = _HEAD.unpack_from(data)
        body = data[_HEAD.size :]
        if magic != _MAGIC or length != len(body) or zlib.crc32(body) != checksum:
            raise self._torn(name)
        return self._owned(body)

    def _owned(self, body: bytes) -> bytes:
        """The content of a file, if it is this node's."""
        cluster, node, content = msgpack.unpackb(body)
        if [cluster, node] != self._owner:
            raise self._error(
                f"belongs to node {node} of cluster {cluster!r}, not to node {self._owner[1]} of cluster "
                f"{self._owner[0]!r}; set another state_dir"
            )
        return bytes(content)

    def _store(self, name: str, content: bytes) -> None:
        body = msgpack.packb([*self._owner, content])
        self._replace(name, _HEAD.pack(_MAGIC, len(body), zlib.crc32(body)) + body)

    def _replace(self, name: str, data: bytes) -> None:
        """Write a file beside and rename it, so that there is never half of it."""
        temporary = f"{name}.new"
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=self._dir_fd)
            try:
                _write_all(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, name, src_dir_fd=self._dir_fd, dst_dir_fd=self._dir_fd)
            os.fsync(self._dir_fd)
        except OSError as e:
            raise self._error(f"{name} cannot be written: {e.strerror or e}") from e

    def _torn(self, name: str) -> StateDirectoryError:
        return self._error(
            f"{name} is damaged (bad magic, length or checksum); restore it, or remove the whole directory: "
            "the node then starts as one whose disk was replaced"
        )

    def _error(self, text: str) -> StateDirectoryError:
        return StateDirectoryError(f"state directory {self.path} {text}")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


# A forked child would hold the flock beyond its parent's death.
_open_directories: weakref.WeakSet[StateDirectory] = weakref.WeakSet()


def _close_in_child() -> None:
    for directory in list(_open_directories):
        directory.close()


os.register_at_fork(after_in_child=_close_in_child)
