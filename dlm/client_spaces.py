"""Lockspaces as clients see them: names apart from each other, with owners and permissions like files."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dlm.arguments import PERMISSIONS, VALUE_LIMIT

if TYPE_CHECKING:
    from typing import Self

    from dlm.session import Session

__all__ = ["ClientSpaces", "SpaceInfo", "open_space", "space_options"]

WhenNoQuorum = Literal["wait", "fail"]
Answer = Literal["delivery", "stable"]


@dataclass(frozen=True, slots=True)
class SpaceInfo:
    """One lockspace. ``permissions`` are those of a file of ``uid`` and ``gid``: to open it takes read and write.

    ``value_limit`` is the length of its longest value block in bytes; ``created`` its position in the order of
    the cluster; ``names`` how many names in it have locks, or have just had some, as the asked node knows. When
    grants are answered, and what has to come first after a failure: docs/lockspaces.md, "Options".
    """

    name: str
    uid: int
    gid: int
    permissions: int
    value_limit: int
    created: int
    closing: bool  #: somebody is releasing it
    names: int = 0
    answer: str = "delivery"  #: or "stable"
    lock_delay_ms: int = 0
    fencing: bool = False
    recovery: bool = False

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> SpaceInfo:
        """From the daemon's answer."""
        return cls(**{field: row[field] for field in cls.__dataclass_fields__ if field in row})

    def to_json(self) -> dict[str, Any]:
        """The same as plain data, the permissions in octal."""
        row = {field: getattr(self, field) for field in self.__dataclass_fields__}
        return {**row, "permissions": f"{self.permissions:04o}"}


class ClientSpaces:
    """The part of ``Client`` that is about lockspaces."""

    _session: Session
    _root: bool = True  #: it ends the session when it is closed; a view of another lockspace does not

    @property
    def space_name(self) -> str:
        """The lockspace whose names this client locks."""
        return self._session.space

    def space(self, name: str, *, create: bool = True, no_quorum: WhenNoQuorum = "wait") -> Self:
        """A client of another lockspace over the same session; made, with permissions 0660, if it is missing.

        ``close`` of it, or the end of ``with``, gives back all locks that this session has in that lockspace, and
        nothing else. ``create=False`` refuses instead. Raises ``NoSuchSpace``, ``PermissionDenied``, ``NoQuorum``.
        """
        limit = open_space(self._session, name, create, no_quorum)
        view = copy.copy(self)
        view._session = self._session.within(name, limit)
        view._root = False
        return view

    def create_space(
        self,
        name: str,
        *,
        permissions: int = PERMISSIONS,
        value_limit: int = VALUE_LIMIT,
        exclusive: bool = True,
        answer: Answer | None = None,
        lock_delay: float | None = None,
        fencing: bool | None = None,
        recovery: bool | None = None,
    ) -> SpaceInfo:
        """Make a lockspace of the caller's user and group; without ``exclusive`` one that is there will do.

        The options (``lock_delay`` in seconds) are those of the node's configuration where they are ``None``.
        Raises ``SpaceExists``, ``PermissionDenied``, ``InvalidRequest`` (too many, or ``value_limit`` over 64 KiB).
        """
        args = {"permissions": permissions, "value_limit": value_limit, "exclusive": exclusive}
        args |= space_options(answer, lock_delay, fencing, recovery)
        return SpaceInfo.from_row(self._session.call("space_create", {"space": name, **args}))

    def set_space(
        self,
        name: str,
        *,
        answer: Answer | None = None,
        lock_delay: float | None = None,
        fencing: bool | None = None,
        recovery: bool | None = None,
    ) -> SpaceInfo:
        """Change options of a lockspace of one's own, at one position of the order; root may change any, and root
        and the daemon's user those of ``default``. What is ``None`` stays as it is; ``lock_delay`` is in seconds.

        What a failure waits for, and is not wanted any more, is not waited for any more. Raises ``NoSuchSpace``,
        ``PermissionDenied``, ``NoQuorum`` (it does not wait for that).
        """
        args = space_options(answer, lock_delay, fencing, recovery)
        return SpaceInfo.from_row(self._session.call("space_set", {"space": name, **args}))

    def release_space(self, name: str, force: int = 0) -> None:
        """Release a lockspace of one's own; root may release any but ``default``.

        ``force`` 0: only if there are no locks in it, 1: only if there are none of this node, 2: in any case. Locks
        that are in it end as lost (``released``), requests that wait in it fail with ``NoSuchSpace``.

        Raises ``SpaceBusy``, ``NoSuchSpace``, ``PermissionDenied``, ``NoQuorum`` (it does not wait for that).
        """
        self._session.kept.give_back(name)
        self._session.call("space_release", {"space": name, "force": force})

    def spaces(self) -> list[SpaceInfo]:
        """All lockspaces, sorted by name, as this node knows them."""
        return [SpaceInfo.from_row(row) for row in self._session.call("space_ls", {})]


def space_options(
    answer: Answer | None, lock_delay: float | None, fencing: bool | None, recovery: bool | None
) -> dict[str, Any]:
    """The arguments for options of a lockspace that are not ``None``."""
    delay = None if lock_delay is None else round(lock_delay * 1000)
    said = {"answer": answer, "lock_delay_ms": delay, "fencing": fencing, "recovery": recovery}
    return {key: value for key, value in said.items() if value is not None}


def open_space(session: Session, name: str, create: bool = True, no_quorum: WhenNoQuorum = "wait") -> int:
    """Make lockspace ``name`` usable for the session; ``default`` always is. Returns its value limit."""
    if name == "default":
        return VALUE_LIMIT
    verb = "space_create" if create else "space_open"
    row = session.call(verb, {"space": name, "no_quorum": no_quorum})
    return int(row.get("value_limit", VALUE_LIMIT))
