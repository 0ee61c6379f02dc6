"""A record that is replaced often: two slots of one file, written in turn and in place.

A file that is written beside and renamed over the old one waits for two commits of the file system's journal: tens
of milliseconds on a busy disk, at every change of the ring. To overwrite blocks that the file has already waits for
the blocks alone, and works on a full disk as well. ::

    slot    header sector   magic, number, length and CRC-32 of the body, CRC-32 of all that; confirmed
            body            padding up to SLOT bytes

The slot with the higher number holds the record. A write that a crash cut short – the header sector arrives whole
or not at all, the body in any part – leaves the other slot as it was, and nobody has been told anything that
depends on the new one. Damage *after* a write was finished is another thing: to fall back to the older record
then would mean to forget a ring. So a finished write is *confirmed* by writing its number once more behind the
header, which need not be on disk at once; if the record that counts is unreadable and was confirmed, the file is
refused.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from typing import NamedTuple

__all__ = ["SLOT", "Damaged", "Slots", "blank"]

SLOT = 64 * 1024  #: bytes, the header included
_SECTOR = 512
_MAGIC = b"vsync-2\n"
_HEAD = struct.Struct(">8sQII")  # magic, number, length of the body, CRC-32 of the body
_SUM = struct.Struct(">I")  # CRC-32 of the header
_NUMBER = struct.Struct(">Q")
_SUM_AT = _HEAD.size
_CONFIRMED_AT = _SUM_AT + _SUM.size


class Damaged(Exception):
    """What is in the file is neither what was written last nor what was written before it."""


class _Found(NamedTuple):
    number: int  #: 0: never written
    body: bytes | None  #: ``None``: it is not whole
    confirmed: bool = False


def blank() -> bytes:
    """A file with two empty slots. It is written whole, so that no later write needs space."""
    return bytes(2 * SLOT)


class Slots:
    """The open file. ``body`` is the record found in it, ``None`` if there is none yet. Used by one thread.

    Raises ``Damaged`` and ``OSError``. Keeps ``fd`` open until ``close``.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        data = os.pread(fd, 2 * SLOT + 1, 0)
        if len(data) != 2 * SLOT:
            raise Damaged
        newer, older = sorted((_read(data[:SLOT], 0), _read(data[SLOT:], 1)), reverse=True, key=_by_number)
        if newer.number > 1 and newer.number != older.number + 1:
            raise Damaged
        if newer.body is None:
            if newer.confirmed or older.body is None:
                raise Damaged
            newer = older
        self._number = newer.number
        self.body = newer.body if newer.number else None

    def write(self, body: bytes) -> None:
        """Replace the record; it is on disk on return. After an ``OSError`` the old one counts."""
        if len(body) > SLOT - _SECTOR:
            raise OSError(f"it has {len(body)} bytes, and there is room for {SLOT - _SECTOR}")
        if not os.fstat(self._fd).st_nlink:
            raise FileNotFoundError(errno.ENOENT, "the file was removed")
        number = self._number + 1
        head = _HEAD.pack(_MAGIC, number, len(body), zlib.crc32(body))
        header = head + _SUM.pack(zlib.crc32(head))
        start = number % 2 * SLOT
        _write(self._fd, header.ljust(_SECTOR, b"\0") + body, start)
        os.fdatasync(self._fd)
        self._number, self.body = number, body
        _write(self._fd, _NUMBER.pack(number), start + _CONFIRMED_AT)  # on disk with the next one, or before

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def _by_number(found: _Found) -> int:
    return found.number


def _read(slot: bytes, place: int) -> _Found:
    if not any(slot[:_SECTOR]):
        return _Found(0, b"")
    head = slot[: _HEAD.size]
    magic, number, length, checksum = _HEAD.unpack(head)
    (header_sum,) = _SUM.unpack_from(slot, _SUM_AT)
    if magic != _MAGIC or header_sum != zlib.crc32(head) or number % 2 != place or length > SLOT - _SECTOR:
        raise Damaged
    body = slot[_SECTOR : _SECTOR + length]
    (confirmed,) = _NUMBER.unpack_from(slot, _CONFIRMED_AT)
    return _Found(number, body if zlib.crc32(body) == checksum else None, confirmed == number)


def _write(fd: int, data: bytes, place: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, place)
        view, place = view[done:], place + done
