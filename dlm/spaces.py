"""Lockspaces: names of their own, owned and permitted like files (locks.md §1.13). The replicated registry.

A lockspace is made and released by ordered messages, so that all members have the same ones at the same position.
The lockspace ``default`` is always there, for everybody.

A release asks whether there are locks, and of names that are private only the owner knows that. So the release of a
space that must be empty (force 0) takes two steps: at its position the space is *closing*, which refuses new locks,
and every node that owns names in it is asked; the verdict falls with the last answer, or when those who have not
answered have left the view. A name that is shared has locks, and one in handover is wanted by two: both mean busy.
With force 1 the releasing node has seen to it that it has no locks there itself, and with force 2 nobody's locks
count: neither asks anybody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from dlm import purge
from dlm.arguments import PERMISSIONS, VALUE_LIMIT
from dlm.messages import Kind, prefix_of
from dlm.names import Form, Name
from dlm.options import PLAIN, Options

if TYPE_CHECKING:
    from dlm.table import Effects, Life, Table

__all__ = [
    "CREATE", "DEFAULT", "EXCLUSIVE", "FORCE_OTHERS", "HANDLERS", "MAX_PER_USER", "MAX_SPACES", "OPEN", "Ask",
    "Ended", "Space", "Spaces", "Told", "nodes_gone",
]  # fmt: skip

MAX_SPACES = 1000  #: they are part of every member's state, and nobody needs as many
MAX_PER_USER = 100  #: of one user but root, so that nobody takes them all

OPEN, CREATE, EXCLUSIVE = range(3)  #: if it is missing: refuse, make it; if it is there: refuse
FORCE_OTHERS = 1  #: a release that minds only locks of the releasing node; 2 minds none, 0 all

_RW = 6


class Release(NamedTuple):
    """A release that waits for answers: who asked for it, and the nodes that have not answered yet."""

    node: int
    session: int
    ticket: int
    position: int  #: in the order: its name, for those who answer
    asked: tuple[int, ...]


class Space:
    """One lockspace. ``shut`` and ``leaving`` are the node's own and not replicated."""

    __slots__ = (
        "created", "gid", "leaving", "name", "options", "permissions", "prefix", "release", "shut", "uid",
        "value_limit",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        uid: int = 0,
        gid: int = 0,
        permissions: int = PERMISSIONS,
        value_limit: int = VALUE_LIMIT,
        created: int = 0,
        options: Options = PLAIN,
    ) -> None:
        self.name = name
        self.prefix = prefix_of(name)
        self.uid = uid
        self.gid = gid
        self.permissions = permissions  #: as of a file; to open it takes read and write
        self.value_limit = value_limit
        self.created = created  #: position in the order
        self.options = options
        self.release: Release | None = None  #: it is closing
        self.leaving = False  #: a release by this node is on its way, which must find no lock of this node
        self.shut = False  #: no new locks from here, for one or the other reason

    def permits(self, uid: int, gid: int) -> bool:
        """Whether this user may open it; root may."""
        if uid == 0:
            return True
        shift = 6 if uid == self.uid else 3 if gid == self.gid else 0
        return self.permissions >> shift & _RW == _RW

    def owned_by(self, uid: int) -> bool:
        """Whether this user may release it."""
        return uid in (0, self.uid) and self.name != "default"

    def row(self) -> dict[str, Any]:
        """For people and clients."""
        return {
            "name": self.name,
            "uid": self.uid,
            "gid": self.gid,
            "permissions": self.permissions,
            "value_limit": self.value_limit,
            "created": self.created,
            "closing": self.release is not None,
            **self.options.row(),
        }

    def encode(self) -> tuple[Any, ...]:
        """The replicated part as a msgpack-able tuple."""
        release = None if self.release is None else tuple(self.release)
        made = self.name, self.uid, self.gid, self.permissions, self.value_limit, self.created
        return *made, tuple(self.options), release

    @classmethod
    def decode(cls, row: tuple[Any, ...]) -> Space:
        """The inverse of ``encode``."""
        space = cls(*row[:6])
        space.options = Options(*row[6])
        if row[7] is not None:
            space.release = Release(*row[7])
            space.shut = True
        return space


DEFAULT = Space("default", permissions=0o666)


class Told(NamedTuple):
    """The answer to a request about lockspace ``space``, for its home. No ``code``: it was done."""

    node: int
    session: int
    ticket: int
    space: str
    code: str = ""


class Ask(NamedTuple):
    """These nodes own names in a lockspace that is closing since ``position``: do their names have locks?"""

    space: str
    position: int
    nodes: tuple[int, ...]


class Ended(NamedTuple):
    """The lockspace is no more, and no lock in it: every home sees to its clients."""

    space: str


class Spaces:
    """The lockspaces by name. ``closing`` counts those that are about to be released."""

    def __init__(self) -> None:
        self.by_name: dict[str, Space] = {DEFAULT.name: Space(DEFAULT.name, permissions=DEFAULT.permissions)}
        self.closing = 0
        self.names: Counter[str] = Counter()  #: for people: some may be gone by now (``dlm.purge``)
        self.special: dict[bytes, Options] = {}  #: the options of those that have any, by prefix

    def get(self, name: str) -> Space | None:
        """The lockspace of that name."""
        return self.by_name.get(name)

    def __iter__(self) -> Iterator[Space]:
        return (self.by_name[name] for name in sorted(self.by_name))

    def count(self, key: bytes, names: int) -> None:
        """There are more names in a lockspace, or less; those of ``default`` are all others."""
        if key[0]:
            self.names[key[: key.index(0)].decode()] += names

    def options(self, key: bytes) -> Options:
        """Those of the lockspace of this name."""
        return self.special.get(key[: key.index(0) + 1], PLAIN) if self.special else PLAIN

    def set_options(self, space: Space, options: Options) -> None:
        """From now on."""
        space.options = options
        self.special.pop(space.prefix, None)
        if options != PLAIN:
            self.special[space.prefix] = options

    def refuses(self, key: bytes) -> str:
        """Why there can be no new lock on this name, as the code of a refusal; empty if there can."""
        if not key[0]:
            return ""  # the prefix of the default lockspace is empty
        space = self.by_name.get(key[: key.index(0)].decode())
        if space is None:
            return "no_space"
        return "closing" if space.release is not None else ""

    def create(self, space: Space, how: int) -> str:
        """Make a lockspace unless it is there; the code of the refusal, if any."""
        known = self.by_name.get(space.name)
        if known is not None:
            return "space_exists" if how == EXCLUSIVE else "closing" if known.release is not None else ""
        if how == OPEN:
            return "no_space"
        if len(self.by_name) >= MAX_SPACES:
            return "too_many"
        if space.uid and sum(other.uid == space.uid for other in self.by_name.values()) >= MAX_PER_USER:
            return "too_many"
        self.by_name[space.name] = space
        self.set_options(space, space.options)
        return ""

    def close(self, space: Space, release: Release) -> None:
        """It is closing: no new locks until the verdict."""
        space.release, space.shut = release, True
        self.closing += 1

    def reopen(self, space: Space) -> None:
        """The release has failed."""
        space.release, space.shut = None, space.leaving
        self.closing -= 1

    def remove(self, space: Space) -> None:
        """The release is done."""
        self.closing -= space.release is not None
        space.shut = True  # whoever still has it open gets nothing there any more
        self.special.pop(space.prefix, None)
        del self.by_name[space.name]

    def encode(self) -> tuple[Any, ...]:
        """All by name; the one that is always there only if it is not as usual."""
        return tuple(space.encode() for space in self if space.name != DEFAULT.name or space.options != PLAIN)

    @classmethod
    def decode(cls, rows: Iterable[tuple[Any, ...]]) -> Spaces:
        """The inverse of ``encode``."""
        spaces = cls()
        for row in rows:
            space = Space.decode(row)
            spaces.by_name[space.name] = space
            spaces.set_options(space, space.options)
            spaces.closing += space.release is not None
        return spaces


# -- messages ------------------------------------------------------------------------------------------------


def _on_create(table: Table, life: Life, body: tuple[Any, ...], out: Effects) -> None:
    name, session, ticket, how, uid, gid, permissions, value_limit, options = body
    space = Space(name, uid, gid, permissions, value_limit, table.applied, Options(*options))
    out.append(Told(life.node, session, ticket, name, table.spaces.create(space, how)))
    if table.spaces.get(name) is space:
        out.extend(table.failures.made(space, table.applied, table.now))


def _on_set(table: Table, life: Life, body: tuple[Any, ...], out: Effects) -> None:
    name, session, ticket, changes = body
    space = table.spaces.get(name)
    if space is not None:
        table.spaces.set_options(space, space.options.changed(changes))
        freed = table.failures.relax(name, space.options.needs)
        out.extend([freed] if freed is not None else [])
    out.append(Told(life.node, session, ticket, name, "no_space" if space is None else ""))


def _on_release(table: Table, life: Life, body: tuple[Any, ...], out: Effects) -> None:
    """The first step, and with force the only one."""
    name, session, ticket, force = body
    space = table.spaces.get(name)
    if space is None or space.release is not None:
        out.append(Told(life.node, session, ticket, name, "no_space" if space is None else "closing"))
        return
    if force:
        _end(table, space, out)
        out.append(Told(life.node, session, ticket, name))
        return
    # The releasing node has looked at its own names before it sent this.
    asked = tuple(sorted({each.owner for _, each in _names(table, space) if each.owner} - {life.node}))
    table.spaces.close(space, Release(life.node, session, ticket, table.applied, asked))
    _judge(table, space, out)
    if asked and space.release is not None:
        out.append(Ask(name, table.applied, asked))


def _on_answer(table: Table, life: Life, body: tuple[Any, ...], out: Effects) -> None:
    """The second step: one of those asked says whether its names have locks."""
    name, position, busy = body
    space = table.spaces.get(name)
    if space is None or space.release is None or space.release.position != position:
        return
    asked = space.release.asked
    if life.node not in asked:
        return
    space.release = space.release._replace(asked=tuple(node for node in asked if node != life.node))
    _judge(table, space, out, busy)


def nodes_gone(table: Table, nodes: Iterable[int], out: Effects) -> None:
    """These lives have ended, and all of theirs with them: nobody waits for their answers any more."""
    if not table.spaces.closing:
        return
    dead = frozenset(nodes)
    for space in list(table.spaces):
        if space.release is not None:
            asked = tuple(node for node in space.release.asked if node not in dead)
            space.release = space.release._replace(asked=asked)
            _judge(table, space, out)


def _judge(table: Table, space: Space, out: Effects, busy: bool = False) -> None:
    """The verdict, if there can be one: busy at the first lock, else when nobody is left to be asked."""
    release = space.release
    assert release is not None
    if not busy:
        names = _names(table, space)
        busy = any(name.form is not Form.PRIVATE for key, name in names if key not in table.vacant)
        if not busy and release.asked:
            return
    if busy:
        table.spaces.reopen(space)
    else:
        _end(table, space, out)
    out.append(Told(release.node, release.session, release.ticket, space.name, "space_busy" if busy else ""))


class SpaceEnded(purge.Due):
    """A lockspace was released: its names are no more."""

    __slots__ = ("prefix",)

    def __init__(self, table: Table, space: Space) -> None:
        super().__init__(table)
        self.prefix = space.prefix

    def carry(self, key: bytes, name: Name) -> bool:
        """See ``Due``."""
        return not key.startswith(self.prefix)


def _end(table: Table, space: Space, out: Effects) -> None:
    """The space goes, with all that is in it. Publications on their way find no name (A2).

    Where somebody waits, that ends at once: it would be in the way of others in the search for deadlocks. And so do
    vacant names: the list of those is part of the table.
    """
    waiting = [resource.name for mine in table.waits.queued.values() for resource in mine.values()]
    table.dues.append(SpaceEnded(table, space))
    for key in [*waiting, *table.vacant]:
        if key.startswith(space.prefix):
            table.find(key)
    table.spaces.remove(space)
    table.failures.forget(space.name)
    out.append(Ended(space.name))


def _names(table: Table, space: Space) -> Iterator[tuple[bytes, Name]]:
    for key in list(table.names):
        if key.startswith(space.prefix):
            name = table.find(key)
            if name is not None:
                yield key, name


HANDLERS: dict[int, Callable[[Table, Life, tuple[Any, ...], Effects], None]] = {
    Kind.SPACE_CREATE: _on_create,
    Kind.SPACE_RELEASE: _on_release,
    Kind.SPACE_ANSWER: _on_answer,
    Kind.SPACE_SET: _on_set,
}
