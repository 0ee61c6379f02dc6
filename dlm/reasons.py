"""Why a name is not free, as ``locks.why`` tells: a tree of those who wait and those they wait for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dlm.info import Mode
from dlm.text import name_text

__all__ = ["Blocker", "Party", "Wait", "Why", "Withheld"]


@dataclass(frozen=True, slots=True)
class Party:
    """One lock on ``name``, and whose it is. ``mode``: held; ``asked``: what it waits for (``None``: nothing).

    ``held_s``: seconds since it was granted what it holds, ``None`` if the node that tells does not know.
    """

    name: bytes
    space: str
    node: int
    session: int
    handle: int
    pid: int
    program: str
    xid: int
    mode: Mode | None
    asked: Mode | None
    fence: int
    held_s: float | None
    orphan: bool

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Party:
        """From the daemon's answer."""
        return cls(
            name=row["name"],
            space=row["space"],
            node=row["node"],
            session=row["session"],
            handle=row["h"],
            pid=row["pid"],
            program=row["program"],
            xid=row["xid"],
            mode=None if row["mode"] is None else Mode[row["mode"]],
            asked=None if row["asked"] is None else Mode[row["asked"]],
            fence=row["fence"],
            held_s=None if row["held_us"] is None else row["held_us"] / 1e6,
            orphan=row["orphan"],
        )

    @property
    def who(self) -> str:
        """Its owner, for people."""
        xid = f", transaction {self.xid}" if self.xid else ""
        orphan = ", an orphan" if self.orphan else ""
        return f"process {self.pid or '?'} ({self.program or '?'}) of node {self.node}{xid}{orphan}"

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "name": name_text(self.name),
            "space": self.space,
            "node": self.node,
            "session": self.session,
            "handle": self.handle,
            "pid": self.pid,
            "program": self.program,
            "xid": self.xid,
            "mode": self.mode.name if self.mode is not None else None,
            "asked": self.asked.name if self.asked is not None else None,
            "fence": self.fence,
            "held_s": self.held_s,
            "orphan": self.orphan,
        }


@dataclass(frozen=True, slots=True)
class Blocker:
    """Somebody who is waited for: ``holds`` a mode in the way, or stands ``ahead`` in the queue. ``then``: what
    that one waits for in turn, empty if it can go on.
    """

    how: str
    party: Party
    then: tuple[Wait, ...]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Blocker:
        """From the daemon's answer."""
        return cls(row["how"], Party.from_row(row), tuple(map(Wait.from_row, row["then"])))

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {"how": self.how, **self.party.to_json(), "then": [wait.to_json() for wait in self.then]}

    def lines(self, indent: int) -> Iterator[str]:
        """For people."""
        party = self.party
        if self.how == "holds" and party.mode is not None:
            since = "" if party.held_s is None else f" for {party.held_s:.1f} s"
            says = f"{party.who} holds {party.mode.name}{since}"
        else:
            says = f"{party.who} is ahead in the queue"
        if not self.then and party.asked is None:
            says += ", and waits for nothing"
        yield "  " * indent + says
        for wait in self.then:
            yield from wait.lines(indent + 1)


@dataclass(frozen=True, slots=True)
class Wait:
    """A lock that waits, and those it waits for. ``again``: it is explained elsewhere in the tree (a circle, or two
    ways to one lock). ``others``: how many more it waits for. ``together``: the names of its multi-lock.
    """

    party: Party
    waited_s: float
    by: tuple[Blocker, ...]
    others: int
    again: bool
    together: tuple[bytes, ...]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Wait:
        """From the daemon's answer."""
        by = tuple(map(Blocker.from_row, row["by"]))
        together = tuple(row["together"])
        return cls(Party.from_row(row), row["waited_us"] / 1e6, by, row["others"], row["again"], together)

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            **self.party.to_json(),
            "waited_s": self.waited_s,
            "by": [one.to_json() for one in self.by],
            "others": self.others,
            "again": self.again,
            "together": [name_text(name) for name in self.together],
        }

    def lines(self, indent: int = 0) -> Iterator[str]:
        """For people."""
        party = self.party
        what = party.asked.name if party.asked is not None else "?"
        held = f", holding {party.mode.name}" if party.mode is not None else ""
        rest = f" together with {len(self.together) - 1} more" if len(self.together) > 1 else ""
        again = " (see above)" if self.again else ""
        says = f"{party.who} waits for {what} on {name_text(party.name)}{rest}{held}, {self.waited_s:.1f} s{again}"
        yield "  " * indent + says
        for blocker in self.by:
            yield from blocker.lines(indent + 1)
        if self.others:
            yield "  " * (indent + 1) + f"and {self.others} more"


@dataclass(frozen=True, slots=True)
class Withheld:
    """What keeps the node from answering, since ``since_s`` seconds and for ``left_s`` more (``None``: not known):
    ``quorum``, ``catch-up``, ``transfer``, ``lease``, ``leaving``, ``horizon``, ``fencing``, ``recovery``,
    ``delay`` or ``stable`` (docs/failures.md). ``nodes`` are those that it is about, ``space`` is the lockspace
    (``None``: not only one), ``remedy`` says what to do.
    """

    reason: str
    text: str
    remedy: str
    since_s: float | None
    left_s: float | None
    nodes: tuple[int, ...]
    space: str | None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Withheld:
        """From the daemon's answer."""
        since, left = (None if row[key] is None else row[key] / 1e6 for key in ("since_us", "until_us"))
        return cls(row["for"], row["text"], row["remedy"], since, left, tuple(row["nodes"]), row["space"])

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        times = {"since_s": self.since_s, "left_s": self.left_s}
        about = {"nodes": list(self.nodes), "space": self.space}
        return {"for": self.reason, "text": self.text, "remedy": self.remedy, **times, **about}

    def lines(self) -> Iterator[str]:
        """For people."""
        yield self.text
        yield f"  {self.remedy}"


@dataclass(frozen=True, slots=True)
class Why:
    """All that is to be said of a name. ``known``: this node knows its queues. ``others``: how many more wait.

    ``untold``: answers about this name that are decided and wait for what is ``withheld``.
    """

    name: bytes
    space: str
    position: int
    state: str
    owner: int | None
    known: bool
    held: tuple[Party, ...]
    waits: tuple[Wait, ...]
    others: int
    untold: int
    withheld: tuple[Withheld, ...]

    @classmethod
    def from_answer(cls, row: Mapping[str, Any]) -> Why:
        """From the daemon's answer."""
        copied = {word: row[word] for word in ("name", "space", "position", "state", "owner", "known", "others")}
        return cls(
            **copied,
            untold=row["untold"],
            held=tuple(map(Party.from_row, row["held"])),
            waits=tuple(map(Wait.from_row, row["waits"])),
            withheld=tuple(map(Withheld.from_row, row["withheld"])),
        )

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "name": name_text(self.name),
            "space": self.space,
            "position": self.position,
            "state": self.state,
            "owner": self.owner,
            "known": self.known,
            "held": _plain(self.held),
            "waits": _plain(self.waits),
            "others": self.others,
            "untold": self.untold,
            "withheld": _plain(self.withheld),
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        yield from (line for each in self.withheld for line in each.lines())
        if self.untold:
            many = self.untold > 1
            yield f"{self.untold} answer{'s' if many else ''} about this name wait{'' if many else 's'} for that"
        name = name_text(self.name)
        if not self.known:
            yield f"{name} is {self.state}, its queues are known to node {self.owner} alone: ask there"
        elif not self.waits:
            yield f"nobody waits for {name}"
            yield from (line for one in self.held for line in Blocker("holds", one, ()).lines(1))
        for wait in self.waits:
            yield from wait.lines()
        if self.others:
            yield f"and {self.others} more wait"

    def __str__(self) -> str:
        return "\n".join(self.lines())


def _plain(rows: Sequence[Party | Wait | Withheld]) -> list[dict[str, Any]]:
    return [row.to_json() for row in rows]
