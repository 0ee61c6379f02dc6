"""A stand-in for storage that checks fences, for tests: of this package, and of programs that use it.

::

    storage = dlm.FencedResource()
    with locks.lock("report") as held:
        storage.write(held.fence, b"...")      # StaleFence if a later holder has written

The rule is that of docs/fencing.md: a token is refused if it is smaller than the last *writer's*. Tokens of readers
are compared and not remembered, as readers share: of two holders of PR, each may read after the other (B5).
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from dlm.errors import StaleFence

__all__ = ["Access", "FencedResource"]

Kind = Literal["write", "claim", "read"]


@dataclass(frozen=True, slots=True)
class Access:
    """Somebody came with a token: to ``write``, to ``claim`` or to ``read``. ``data`` is what was to be written, in
    process ``pid``; ``newest`` the last writer's token before.
    """

    kind: Kind
    token: int
    accepted: bool
    newest: int
    data: bytes
    pid: int


class FencedResource:
    """One thing that is protected by one lock: some bytes, the fence of the last writer, and who came when.

    Without ``path`` for the threads of a process; with one, a file that any number of processes of the host share:
    it is made if it is missing, and may be removed when nobody uses it. Thread-safe; may be passed to other
    processes if it has a path.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._guard = threading.Lock()
        self._accesses: list[Access] = []
        self._read_to = 0  #: how far the file is known
        self._fence = 0
        self._data = b""

    # -- what a holder does

    def write(self, token: int, data: bytes) -> None:
        """Replace the data. Raises ``StaleFence``, and changes nothing, if ``token`` is smaller than the last
        writer's. What depends on data that were read before needs ``claim`` first.
        """
        self._access("write", token, bytes(data))

    def claim(self, token: int) -> bytes:
        """Begin to write: from now on smaller tokens are refused; the data as they are now.

        Without this, a former holder could still write between the read and the write of its successor. Raises
        ``StaleFence``.
        """
        return self._access("claim", token, b"")

    def read(self, token: int) -> bytes:
        """The data, for a holder of any mode. Raises ``StaleFence``: then a writer came later, and whoever has this
        token does not hold the lock any more.
        """
        return self._access("read", token, b"")

    # -- what a test looks at

    @property
    def data(self) -> bytes:
        """The data, for nobody in particular."""
        with self._locked():
            return self._data

    @property
    def fence(self) -> int:
        """The last writer's token; 0 before the first."""
        with self._locked():
            return self._fence

    @property
    def accesses(self) -> tuple[Access, ...]:
        """Everybody who came, in order."""
        with self._locked():
            return tuple(self._accesses)

    @property
    def accepted(self) -> tuple[Access, ...]:
        """Those who were let in."""
        return tuple(access for access in self.accesses if access.accepted)

    @property
    def refused(self) -> tuple[Access, ...]:
        """Those who came too late."""
        return tuple(access for access in self.accesses if not access.accepted)

    # -- details

    def _access(self, kind: Kind, token: int, data: bytes) -> bytes:
        if isinstance(token, bool) or not isinstance(token, int) or token <= 0:
            raise ValueError(f"a fencing token is a number above 0, not {token!r}")
        with self._locked() as keep:
            newest = self._fence
            access = Access(kind, token, token >= newest, newest, data, os.getpid())
            keep(access)
            self._apply(access)
            found = self._data
        if not access.accepted:
            text = f"token {token} is smaller than {newest}, with which somebody has written"
            raise StaleFence(f"this {kind} comes too late: {text}", token=token, newest=newest)
        return found

    def _apply(self, access: Access) -> None:
        self._accesses.append(access)
        if access.accepted and access.kind != "read":
            self._fence = access.token
        if access.accepted and access.kind == "write":
            self._data = access.data

    @contextmanager
    def _locked(self) -> Iterator[Callable[[Access], None]]:
        """Inside, nobody else has access, and everything before is known; what it gives keeps a new access."""
        with self._guard:
            if self.path is None:
                yield lambda access: None
                return
            # Opened anew each time: a lock belongs to the open file, which a forked child would share.
            with open(self.path, "a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                self._catch_up(file)
                yield lambda access: self._keep(file, access)

    def _catch_up(self, file: BinaryIO) -> None:
        """What others have done. A line without an end is that of a process which died in its middle."""
        file.seek(self._read_to)
        for line in file.read().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                file.truncate(self._read_to)
                break
            self._apply(_from_line(line))
            self._read_to += len(line)

    def _keep(self, file: BinaryIO, access: Access) -> None:
        line = _to_line(access)
        file.write(line)
        file.flush()
        self._read_to += len(line)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is None:
            raise TypeError("a FencedResource without a path belongs to its process")
        return FencedResource, (str(self.path),)

    def __repr__(self) -> str:
        where = f" {str(self.path)!r}" if self.path is not None else ""
        return f"<dlm.FencedResource{where} fence={self._fence}, {len(self._accesses)} accesses>"


def _to_line(access: Access) -> bytes:
    return json.dumps({**asdict(access), "data": access.data.hex()}).encode() + b"\n"


def _from_line(line: bytes) -> Access:
    row = json.loads(line)
    return Access(**{**row, "data": bytes.fromhex(row["data"])})
