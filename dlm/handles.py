"""Local sessions, and the handles of each by number.

A session may have a million locks that it does nothing with. A handle *at rest* – granted and told, and nothing
under way about it – is kept as bytes, which are a third of it; whoever asks for it gets an object again. The eldest
objects are folded, a few at a time, when a request comes and with each new handle (``fold``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import msgpack

from dlm.handle import Handle
from dlm.spaces import DEFAULT, Space
from vsync.service import Credentials

__all__ = ["OPEN", "Handles", "Session"]

OPEN = 64  #: handles of a session that are objects, if they are not busy
AT_ONCE = 2  #: folded at a time, so that no request takes longer as there are many

_PACK = msgpack.Packer().pack


class Handles:
    """A mapping, in the order in which they were added."""

    __slots__ = ("_all", "_open", "_session", "many")

    def __init__(self, session: int) -> None:
        self.many = False  #: some may be folded
        self._session = session
        self._all: dict[int, Handle | bytes] = {}
        self._open: deque[int] = deque()  #: the numbers of objects, eldest first; some may have gone

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, h: object) -> bool:
        return h in self._all

    def add(self, handle: Handle) -> None:
        """One more. To be called with no other in hand."""
        self._all[handle.h] = handle
        self._open.append(handle.h)
        self.many = len(self._open) > OPEN
        if self.many:
            self.fold()

    def get(self, h: int) -> Handle | None:
        """The handle with this number, if there is one."""
        found = self._all.get(h)
        return self._opened(h, found) if isinstance(found, bytes) else found

    def __getitem__(self, h: int) -> Handle:
        found = self._all[h]
        return self._opened(h, found) if isinstance(found, bytes) else found

    def pop(self, h: int) -> bool:
        """It has ended. Whether there was one."""
        if self._open and self._open[-1] == h:
            self._open.pop()  # as is usual: so those that come and go push nobody out
        return self._all.pop(h, None) is not None

    def values(self) -> Iterator[Handle]:
        """All that there are now, one by one, whatever becomes of them meanwhile."""
        return self.under(b"")

    def under(self, prefix: bytes) -> Iterator[Handle]:
        """Those whose names begin with ``prefix``."""
        for h, each in list(self._all.items()):
            if not isinstance(each, bytes):
                if each.key.startswith(prefix):
                    yield each
            elif each.startswith(prefix) and h in self._all:
                yield self[h]

    def busy(self) -> Iterator[Handle]:
        """At least those about which something is under way."""
        return iter([each for each in self._all.values() if not isinstance(each, bytes)])

    def fold(self) -> None:
        """Fold some of those at rest, the eldest first. To be called with none in hand."""
        for _ in range(min(len(self._open) - OPEN, AT_ONCE)):
            h = self._open.popleft()
            handle = self._all.get(h)
            if isinstance(handle, Handle):
                self._put_away(handle)
        self.many = len(self._open) > OPEN

    def _put_away(self, handle: Handle) -> None:
        if handle.resting:
            self._all[handle.h] = _folded(handle)
        else:
            self._open.append(handle.h)

    def _opened(self, h: int, folded: bytes) -> Handle:
        handle = self._all[h] = _unfolded(self._session, h, folded)
        self._open.append(h)
        self.many = len(self._open) > OPEN
        return handle


def _folded(handle: Handle) -> bytes:
    """The name first, so that names can be looked for; what is said of the lock; how long that is."""
    said: bytes = _PACK(handle.at_rest())
    return b"%b%b%c" % (handle.key, said, len(said))


def _unfolded(session: int, h: int, folded: bytes) -> Handle:
    start = len(folded) - 1 - folded[-1]
    return Handle.resumed(session, h, folded[:start], msgpack.unpackb(folded[start:-1], use_list=False))


class Session:
    """A local client."""

    __slots__ = ("handles", "spaces", "who")

    def __init__(self, number: int, who: Credentials) -> None:
        self.who = who
        self.spaces: dict[str, Space] = {DEFAULT.name: DEFAULT}  #: those it has open
        self.handles = Handles(number)
