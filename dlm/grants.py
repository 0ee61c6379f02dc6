"""Several grants that were given together: what is common to them, whoever waits for them. Nothing here waits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from dlm import answers
from dlm.errors import InvalidRequest, LockLost, NotHeld
from dlm.grant import Grant
from dlm.info import Mode
from dlm.portions import by_size

if TYPE_CHECKING:
    from dlm.session_base import SessionBase

__all__ = ["AskedAll", "Grants", "Name", "NameAndMode", "merged", "numbered"]

Name = str | bytes
NameAndMode = Name | tuple[Name, Mode]
G = TypeVar("G", bound=Grant)


class Grants(Sequence[G]):
    """All locks of one request, in the order in which they were named; each is a handle of its own, too.

    ``held["acct/1"]`` is the one with this name.
    """

    _session: SessionBase

    def __init__(self, session: SessionBase, parts: Sequence[G]) -> None:
        self._session = session
        self._parts = tuple(parts)
        self._by_name = {part.name: part for part in parts}

    # -- a sequence

    @overload
    def __getitem__(self, which: int | str | bytes) -> G: ...

    @overload
    def __getitem__(self, which: slice) -> Sequence[G]: ...

    def __getitem__(self, which: int | str | bytes | slice) -> G | Sequence[G]:
        if isinstance(which, str | bytes):
            return self._by_name[answers.name_bytes(which)]
        return self._parts[which]

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def names(self) -> tuple[bytes, ...]:
        """The names."""
        return tuple(part.name for part in self._parts)

    @property
    def fences(self) -> tuple[int, ...]:
        """The fencing token of each; see ``Held.fence``."""
        return tuple(part.fence for part in self._parts)

    # -- are they still held?

    @property
    def released(self) -> bool:
        """Whether all of them have been released."""
        return all(part.released for part in self._parts)

    @property
    def valid(self) -> bool:
        """Whether all of them are held for certain at this moment."""
        return all(part.valid for part in self._parts)

    def loss_now(self) -> str | None:
        """Why one of them is not valid at this moment although it was not released; ``None`` if there is none."""
        return next((reason for part in self._parts if (reason := part.loss_now()) is not None), None)

    def loss_error(self) -> LockLost | None:
        """The exception for the first that is lost at this moment; ``None`` if there is none."""
        return next((lost for part in self._parts if (lost := part.loss_error()) is not None), None)

    def check(self) -> None:
        """Return if all of them are held for certain at this moment.

        Raises as ``Held.check``, for the first that is not.
        """
        for part in self._parts:
            part.check()

    def lease_rest_s(self, at_most: float | None = None) -> float:
        """See ``Held.lease_rest_s``."""
        return self._parts[0].lease_rest_s(at_most)

    def take_blocking(self) -> Mode | None:
        """Advice goes to the single locks, which nobody watches here."""
        return None

    # -- giving them back

    def _end_all(self, invalidate: bool) -> tuple[LockLost | None, list[dict[str, Any]], list[G]]:
        """All that are not released end here, but for those that convert: that has to be withdrawn first.

        What to raise when all is done, what to ask the node for, and those that convert. Raises ``NotHeld`` if all
        were released before.
        """
        session = self._session
        lost = self.loss_error()
        rows: list[dict[str, Any]] = []
        converting: list[G] = []
        with session.changed:
            due = [part for part in self._parts if not part.released]
            if not due:
                raise NotHeld(f"locks {answers.name_text(text_of(self.names))!r} have been released")
            for part in due:
                if part.converting:
                    converting.append(part)
                else:
                    rows.append(part.begin_release(invalidate))
            session.changed.notify_all()
        return lost, rows, converting

    def _unlocks(self, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The requests that release ``rows``; as a rule there is one."""
        for portion in by_size(rows, lambda row: len(row.get("value") or b"")):
            yield {"locks": portion}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(map(repr, self._parts))}>"


class AskedAll(Generic[G]):
    """What a request for several locks is known by while nothing is held: its first handle, and all its names."""

    def __init__(self, session: SessionBase, grants: Grants[G]) -> None:
        ordered = sorted(grants, key=lambda grant: grant.serial)
        self.serial = ordered[0].serial
        self.name = text_of(grant.name for grant in ordered)
        self.locks = [(grant.name, int(grant.mode)) for grant in ordered]
        self.grants = grants
        self._session = session

    def args(self, timeout: float | None, no_quorum: str, xid: int | None) -> dict[str, Any]:
        """The arguments of the request."""
        session = self._session
        return {
            "h": self.serial,
            "locks": self.locks,
            "noqueue": timeout == 0,
            "no_quorum": "fail" if timeout == 0 else no_quorum,
            "space": session.space,
            "valblk": True,
            **session.identity(xid),
            **session.limit(timeout),
        }

    def granted(self, result: dict[str, Any]) -> None:
        """The node's answer. Called under ``session.changed``."""
        rows = {row["h"]: row for row in result["locks"]}
        for grant in self.grants:
            grant.mark_granted(rows[grant.serial])

    def withdraw(self, future: Future[Any] | None) -> None:
        """The caller has gone; a grant that raced is released as a whole (API-R8)."""
        for grant in self.grants:
            grant.mark_withdrawn()
        session, unlock = self._session, {"locks": [{"h": grant.serial} for grant in self.grants]}
        if future is None or not future.done():
            session.post("cancel", {"h": self.serial})
        if future is None:  # interrupted while sending: the daemon may or may not know the request
            session.post("unlock_all", unlock)
            return

        def release_if_granted(done: Future[Any]) -> None:
            if not done.cancelled() and done.exception() is None:
                session.post("unlock_all", unlock)

        future.add_done_callback(release_if_granted)


def numbered(session: SessionBase, names: Mapping[bytes, Mode]) -> dict[bytes, int]:
    """Handle numbers for the names: the node takes the parts of a request to follow each other, in this order."""
    return dict(zip(sorted(names), session.next_serials(len(names)), strict=True))


def merged(names: Iterable[NameAndMode], default: Mode) -> dict[bytes, Mode]:
    """The names in their order, each once, with the mode it needs. Raises ``InvalidRequest`` if there is none."""
    found: dict[bytes, Mode] = {}
    for name, mode in _pairs(names, default):
        found[name] = _including(found.get(name, mode), mode)
    if not found:
        raise InvalidRequest("which locks? At least one name is needed")
    return found


def _pairs(names: Iterable[NameAndMode], default: Mode) -> Iterator[tuple[bytes, Mode]]:
    for each in names:
        if isinstance(each, tuple):
            name, mode = each
            yield answers.name_bytes(name), Mode(mode)
        else:
            yield answers.name_bytes(each), default


def _including(a: Mode, b: Mode) -> Mode:
    """The weakest mode that excludes all that ``a`` and ``b`` exclude. The modes form a chain but for CW and PR."""
    if {a, b} == {Mode.CW, Mode.PR}:
        return Mode.PW
    return max(a, b)


def text_of(names: Iterable[bytes]) -> bytes:
    """All of them, for people."""
    return b" + ".join(names)
