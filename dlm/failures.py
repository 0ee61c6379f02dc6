"""What has to come after a failure before others may have what the failed node had (design §5.4).

A *failure* is one life that ended without a goodbye, for one lockspace whose options want something first: that the
node is fenced, that an application has recovered from it, or just some time. The names in which that life held
something, or that it owned, are *concerned*. The table is never delayed: a grant of a concerned name is decided as
any other, but its client is not told (``dlm.withheld``) before an ordered CLEARED, or more of them, have taken away
all that the failure needs.

Lockspaces that want this answer when what they answer is settled (``Options.settles``); so there is no grant that
only the failed node had heard of, and the table knows every name that is concerned.

Under a policy that lets two parts of a cluster act at once (``two_node``, ``none``) every name of every lockspace
is concerned (lockspace ``EVERYWHERE``) until the other side is fenced: it may have given anything to anybody.

Of a table that begins empty nobody knows what was held before. Configured nodes that are absent then are *unseen*:
they may still hold locks in lockspaces of the same names, on a host that hangs. Under those policies, and for each
lockspace that is made with fencing, they count as failed (incarnation 0), with every name concerned.

Failures are part of the replicated state, but for ``since`` and ``lately``. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dlm.messages import Kind, prefix_of
from dlm.modes import NL
from dlm.names import Form, Name
from dlm.options import FENCING, words
from vsync.types import Member

if TYPE_CHECKING:
    from dlm.spaces import Space, Spaces
    from dlm.table import Effects, Life, Table

__all__ = ["EVERYWHERE", "HANDLERS", "Begun", "Failure", "Failures", "Fate", "Freed", "concerned"]

EVERYWHERE = "*"  #: all lockspaces


class Failure:
    """One life that failed, for one lockspace."""

    __slots__ = ("incarnation", "keys", "needs", "node", "position", "since", "space")

    def __init__(self, space: str, node: int, incarnation: int, position: int, needs: int, since: int) -> None:
        self.space = space
        self.node = node
        self.incarnation = incarnation
        self.position = position  #: of the view that ended it
        self.needs = needs  #: FENCING, RECOVERY, DELAY: what is still to come
        self.since = since  #: local clock when this node learnt of it; not replicated
        self.keys: dict[bytes, None] = {}  #: the names concerned, unless it is ``whole``

    @property
    def member(self) -> Member:
        """The node and its incarnation."""
        return Member(self.node, self.incarnation)

    @property
    def name(self) -> tuple[str, int, int, int]:
        """What tells it from all others."""
        return self.space, self.node, self.incarnation, self.position

    @property
    def whole(self) -> bool:
        """Whether every name of its lockspace, or of all, is concerned."""
        return self.space == EVERYWHERE or not self.incarnation

    @property
    def matters(self) -> bool:
        """Whether any name is concerned, as far as names have been looked at (``dlm.purge``)."""
        return bool(self.keys) or self.whole

    @property
    def fences(self) -> bool:
        """Whether its node has to be fenced."""
        return bool(self.needs & FENCING) and self.matters

    def row(self, now: int) -> dict[str, Any]:
        """For people and programs."""
        return {
            "space": self.space,
            "node": self.node,
            "incarnation": self.incarnation,
            "position": self.position,
            "needs": words(self.needs),
            "names": None if self.whole else len(self.keys),
            "since_us": now - self.since,
        }


Ending = Mapping[int, Mapping[bytes, Failure | None]]  #: by node and prefix of the lockspace: who has ended


class Begun(NamedTuple):
    """These have failed at a view: for the log."""

    failures: tuple[Failure, ...]


class Freed(NamedTuple):
    """Something that failures needed has come: grants may be told. ``who`` said so, for people."""

    node: int
    incarnation: int
    space: str
    bits: int
    who: str


Fate = Begun | Freed  #: what the homes of locks are told


class Failures:
    """All failures that still need something. ``tries`` belongs to ``dlm.stonith``: what was done to fence them."""

    def __init__(self) -> None:
        self.every: list[Failure] = []  #: in the order of their positions
        self.everywhere: list[Failure] = []  #: those of them that concern every name ..
        self.whole: dict[bytes, list[Failure]] = {}  #: .. and every name of a lockspace, by its prefix
        self.unseen: dict[int, None] = {}  #: nodes that were absent when the table began, and since
        self.tries: dict[Member, Any] = {}
        #: What ended lives held or owned, in lockspaces that settle: it waits for the horizon. Not replicated.
        self.lately: dict[bytes, None] = {}
        self._by_key: dict[bytes, list[Failure]] = {}  #: failures that need nothing any more may be among them
        self._ending: Ending = {}

    def __bool__(self) -> bool:
        return bool(self.every)

    # -- questions

    def waiting(self, key: bytes) -> list[Failure]:
        """The failures that keep grants of this name from being told."""
        whole = self.whole.get(key[: key.index(0) + 1], ()) if self.whole else ()
        named = [each for each in self._by_key.get(key, ()) if each.needs]
        return [*named, *whole, *self.everywhere]

    def concerns(self, key: bytes) -> bool:
        """Whether there is one."""
        if self.everywhere or any(each.needs for each in self._by_key.get(key, ())):
            return True
        return bool(self.whole) and key[: key.index(0) + 1] in self.whole

    def needs_fencing(self, member: Member) -> bool:
        """Whether it does, if any name turns out to be concerned: all members agree about that at each position."""
        return any(each.member == member and each.needs & FENCING for each in self.every)

    def unfenced(self) -> list[Member]:
        """The lives that have to be fenced as far as this node has looked at names, sorted."""
        return sorted({each.member for each in self.every if each.fences})

    def rows(self, now: int) -> list[dict[str, Any]]:
        """All that matter, for status."""
        return [each.row(now) for each in self.every if each.matters]

    # -- what happens

    def begin(self, spaces: Spaces, lives: Iterable[Life], position: int, now: int, split: bool) -> list[Begun]:
        """These lives have ended at a view, without a goodbye; their names are looked at afterwards, each when it
        is purged (``ending``, ``concern``).

        ``split``: another part of the cluster may act.
        """
        begun: list[Failure] = []
        endings: dict[int, dict[bytes, Failure | None]] = {}
        wanting = [space for space in spaces if space.options.settles]
        for life in sorted(lives, key=lambda life: life.node):
            ending: dict[bytes, Failure | None] = {}
            for space in wanting:
                needs = space.options.needs
                failure = Failure(space.name, life.node, life.incarnation, position, needs, now) if needs else None
                ending[space.prefix] = failure
                if failure is not None:
                    begun.append(failure)
            if ending:
                endings[life.node] = ending
            if split:
                begun.append(Failure(EVERYWHERE, life.node, life.incarnation, position, FENCING, now))
        self._add(begun)
        self._ending = endings
        return [Begun(tuple(begun))] if begun else []

    def absent(self, spaces: Spaces, nodes: Iterable[int], position: int, now: int, split: bool) -> None:
        """The table begins empty, and these nodes are not there; ``split``: they may act elsewhere."""
        self.unseen = dict.fromkeys(sorted(nodes))
        if split:
            self._add([Failure(EVERYWHERE, node, 0, position, FENCING, now) for node in self.unseen])
        for space in spaces:
            self.made(space, position, now)

    def made(self, space: Space, position: int, now: int) -> list[Begun]:
        """A lockspace has been made: who is unseen may hold locks in one that had its name before."""
        known = {failure.node for failure in self.everywhere}
        nodes = [node for node in self.unseen if node not in known] if space.options.fencing else []
        begun = [Failure(space.name, node, 0, position, FENCING, now) for node in nodes]
        self._add(begun)
        return [Begun(tuple(begun))] if begun else []

    def ending(self) -> Ending:
        """What is to be given to ``concern`` for all names that there are now. To be asked for once."""
        ending, self._ending = self._ending, {}
        return ending

    def concern(self, key: bytes, name: Name, lives: Ending) -> None:
        """This name is about to be purged of these nodes' lives: note what they had in it.

        NL excludes nobody, and a request that waits has got nothing.
        """
        prefix = key[: key.index(0) + 1]
        for node, ending in sorted(lives.items()):
            if prefix not in ending:
                continue
            resource = name.resource
            if name.form is Form.SHARED and resource is not None:
                had = any(lock.mode > NL for who, lock in resource.locks.items() if who[0] == node)
            else:
                had = name.owner == node
            if had:
                self.lately[key] = None
                failure = ending[prefix]
                if failure is not None:
                    self._concern(failure, key)

    def returned(self, node: int, incarnation: int) -> Freed | None:
        """The node is back with a later life, and has itself ended what it had before: it need not be fenced."""
        return self.clear(node, incarnation, EVERYWHERE, FENCING, "it is back")

    def clear(
        self, node: int, incarnation: int, space: str, bits: int, who: str, upto: int | None = None
    ) -> Freed | None:
        """What these lives of a node needed has come, for one lockspace or ``EVERYWHERE``; ``upto``: only failures
        up to this position. ``None`` if nobody has waited for it.
        """
        if space == EVERYWHERE and bits & FENCING:
            self.unseen.pop(node, None)
        found = [
            each
            for each in self.every
            if each.node == node
            and each.incarnation <= incarnation
            and space in (EVERYWHERE, each.space)
            and each.needs & bits
            and (upto is None or each.position <= upto)
        ]
        return self._less(found, bits, Freed(node, incarnation, space, bits, who))

    def relax(self, space: str, needs: int) -> Freed | None:
        """The options of a lockspace have changed: what it does not want any more is not waited for."""
        found = [each for each in self.every if each.space == space and each.needs & ~needs]
        return self._less(found, ~needs, Freed(0, 0, space, 0, "its options were changed"))

    def forget(self, space: str) -> None:
        """The lockspace is no more."""
        self.relax(space, 0)

    def _less(self, found: Sequence[Failure], bits: int, freed: Freed) -> Freed | None:
        for failure in found:
            failure.needs &= ~bits
            if not failure.needs:
                self._remove(failure)
        for member in [member for member in self.tries if not self.needs_fencing(member)]:
            del self.tries[member]
        return freed if found else None

    def _add(self, failures: Iterable[Failure]) -> None:
        for failure in failures:
            self.every.append(failure)
            if failure.space == EVERYWHERE:
                self.everywhere.append(failure)
            elif failure.whole:
                self.whole.setdefault(prefix_of(failure.space), []).append(failure)

    def _remove(self, failure: Failure) -> None:
        self.every.remove(failure)
        if failure.space == EVERYWHERE:
            self.everywhere.remove(failure)
        elif failure.whole:
            _take(self.whole, prefix_of(failure.space), failure)
        if not self.every:  # they may be very many names: those of the others stay until then
            self._by_key = {}

    # -- snapshots and checks

    def mark(self) -> tuple[Any, ...]:
        """The replicated part without the names."""
        return tuple((*each.name, each.needs) for each in self.every), tuple(self.unseen)

    def encode(self) -> tuple[Any, ...]:
        """The replicated part but for the names, as a msgpack-able tuple."""
        tries = tuple((*member, tuple(self.tries[member])) for member in sorted(self.tries))
        return *self.mark(), tries

    @classmethod
    def decode(cls, data: tuple[Any, ...], now: int) -> Failures:
        """The inverse of ``encode``."""
        self = cls()
        rows, unseen, tries = data
        self.unseen = dict.fromkeys(unseen)
        for space, node, incarnation, position, needs in rows:
            self._add([Failure(space, node, incarnation, position, needs, now)])
        self.tries = {Member(node, incarnation): row for node, incarnation, row in tries}
        return self

    def put_concerned(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """A row of ``concerned``, for a copy. Returns it as it is now known."""
        *name, key = row
        failure = next(each for each in self.every if each.name == tuple(name))
        self._concern(failure, key)
        return *failure.name, next(reversed(failure.keys))

    def _concern(self, failure: Failure, key: bytes) -> None:
        failure.keys[key] = None
        if failure.needs:
            self._by_key.setdefault(key, []).append(failure)

    def clone(self, endings: Iterable[Ending]) -> tuple[Failures, list[Ending]]:
        """The same once more, for somebody who wants to know what ``concern`` would do."""
        clone = Failures.decode(self.encode(), 0)
        for row in concerned(self.every):
            clone.put_concerned(row)
        by_name = {each.name: each for each in clone.every}
        translated: list[Ending] = [
            {
                node: {prefix: failure and by_name.get(failure.name) for prefix, failure in ending.items()}
                for node, ending in lives.items()
            }
            for lives in endings
        ]
        return clone, translated

    def invariants(self) -> None:
        """Assert what must hold after every event. For tests."""
        assert all(each.needs for each in self.every), "a failure needs nothing and is still there"
        assert self.everywhere == [each for each in self.every if each.space == EVERYWHERE]
        whole = [each for found in self.whole.values() for each in found]
        assert {each.name for each in whole} == {
            each.name for each in self.every if each.whole and each not in self.everywhere
        }
        by_key: dict[bytes, list[Failure]] = {}
        for each in self.every:
            for key in each.keys:
                assert key.startswith(prefix_of(each.space)), f"{key!r} is not in lockspace {each.space!r}"
                by_key.setdefault(key, []).append(each)
        counted = {key: sorted(each.name for each in found if each.needs) for key, found in self._by_key.items()}
        counted = {key: found for key, found in counted.items() if found}
        assert counted == {key: sorted(each.name for each in found) for key, found in by_key.items()}


def concerned(failures: Iterable[Failure]) -> Iterator[tuple[str, int, int, int, bytes]]:
    """The names that these concern, each with the name of the failure."""
    for failure in failures:
        for key in list(failure.keys):
            yield *failure.name, key


def _take(index: dict[bytes, list[Failure]], key: bytes, failure: Failure) -> None:
    left = index[key]
    left.remove(failure)
    if not left:
        del index[key]


def _on_cleared(table: Table, life: Life, body: tuple[Any, ...], out: Effects) -> None:
    """CLEARED: something that failures needed has come."""
    freed = table.failures.clear(*body)
    if freed is not None:
        out.append(freed)


HANDLERS: Mapping[int, Callable[[Table, Life, tuple[Any, ...], Effects], None]] = {Kind.CLEARED: _on_cleared}
