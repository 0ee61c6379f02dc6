"""One lockable name, written from the rules of locks.md §1 alone, and as dumb as possible.

Plain lists, looked through from the start each time; nothing is counted, cached or shared with ``dlm``.
Modes and flags are the words of the rules. Where the rules leave a choice, docs/locks.md says which one was
made: holders are told in the order of their keys; HEADQUE that fits and would be first is granted at once; a
process that dies counts as a node that dies (L7); an adopted orphan gets a new fence (F4).

Every operation returns its effects in order: ``("ok", who, mode, fence, value read, outcome flags, former
key)``, ``("refused", who, why)``, ``("canceled", who, mode still held, outcome flags)``, ``("gone", who)``,
``("bast", who, mode)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["MODES", "QUECVT_TO", "Entry", "Model", "conflict", "rank"]

MODES = ["NL", "CR", "CW", "PR", "PW", "EX"]
FITS = {  # §1.1
    "NL": ["NL", "CR", "CW", "PR", "PW", "EX"],
    "CR": ["NL", "CR", "CW", "PR", "PW"],
    "CW": ["NL", "CR", "CW"],
    "PR": ["NL", "CR", "PR"],
    "PW": ["NL", "CR"],
    "EX": ["NL"],
}
QUECVT_TO = {  # §1.5
    "NL": ["CR", "CW", "PR", "PW", "EX"],
    "CR": ["CW", "PR", "PW", "EX"],
    "CW": ["PR", "PW", "EX"],
    "PR": ["CW", "PW", "EX"],
    "PW": ["EX"],
    "EX": [],
}
VALUE = {  # §1.9, columns as MODES; "" is a new request
    "": "RRRRRR",
    "NL": "RRRRRR",
    "CR": ".RRRRR",
    "CW": "..RRRR",
    "PR": "...RRR",
    "PW": "WWWWWR",
    "EX": "WWWWWW",
}

Who = tuple[int, int, int]
Effects = list[tuple[Any, ...]]


def conflict(one: str, other: str) -> bool:
    """Whether two locks cannot hold these modes at once; nothing held conflicts with nothing."""
    return bool(one) and bool(other) and other not in FITS[one]


def rank(mode: str) -> int:
    """NL 0 .. EX 5; no mode counts as NL."""
    return MODES.index(mode) if mode else 0


class Entry:
    """One lock. ``held`` is "" while it waits, ``asked`` what it wants or has."""

    def __init__(self, who: Who, asked: str, flags: frozenset[str], value: bytes | None) -> None:
        self.who = who
        self.held = ""
        self.asked = asked
        self.flags = flags
        self.former = flags  # before the conversion in progress
        self.value = value
        self.fence = 0
        self.told = ""  # B4
        self.listens = "NOTIFY" in flags
        self.persistent = "PERSISTENT" in flags
        self.orphan = False
        self.said: frozenset[str] = frozenset()  # of the operation in progress

    def wanted(self) -> list[str]:
        """The mode asked for, then the others that would do (ALTPR, ALTCW)."""
        wanted = [self.asked]
        wanted += ["PR"] if "ALTPR" in self.flags and self.asked != "PR" else []
        return wanted + (["CW"] if "ALTCW" in self.flags and self.asked != "CW" else [])


class Model:
    """The queues of one name. ``mint`` gives the next fence."""

    def __init__(self, mint: Callable[[], int], valid: bool = True) -> None:
        self.mint = mint
        self.granted: list[Entry] = []
        self.converting: list[Entry] = []
        self.waiting: list[Entry] = []
        self.value = b""
        self.valid = valid

    # -- what is asked ---------------------------------------------------------------------------------------

    def request(self, who: Who, mode: str, flags: Iterable[str], value: bytes | None = None) -> Effects:
        """A new lock."""
        entry = Entry(who, mode, frozenset(flags), value)
        out: Effects = []
        if self.find(who) is not None:
            return [("refused", who, "exists")]
        if "ORPHAN" in entry.flags:
            self._adopt(entry, out)
            return out
        can = self._possible(entry)
        alone = not self.converting and not self.waiting  # Q9
        would_be_first = "HEADQUE" in entry.flags and not self.converting
        overtakes = "NOORDER" in entry.flags or ("EXPEDITE" in entry.flags and mode == "NL")  # Q7, Q1
        if can and (alone or would_be_first or overtakes):
            self.granted.append(entry)
            self._grant(entry, can, out)
        elif "NOQUEUE" in entry.flags:
            self._refuse(entry, "again", out)
        else:
            self._line_up(self.waiting, entry)
            self._tell_of(entry, self.granted, out)  # B1
        return out

    def convert(self, who: Who, mode: str, flags: Iterable[str], value: bytes | None = None) -> Effects:
        """Another mode for a granted lock."""
        entry = self.find(who)
        if entry is None:
            return [("refused", who, "unknown")]  # E8
        if entry not in self.granted:
            return [("refused", who, "busy")]  # E10
        out: Effects = []
        entry.former = entry.flags
        former = entry.asked, entry.flags, entry.value
        entry.asked, entry.flags, entry.value, entry.said = mode, frozenset(flags), value, frozenset()
        entry.listens = "NOTIFY" in entry.flags  # U8
        entry.persistent = entry.persistent or "PERSISTENT" in entry.flags
        lines_up = "QUECVT" in entry.flags and self.converting  # Q6
        at_once = not lines_up or "NOORDER" in entry.flags or "HEADQUE" in entry.flags
        can = self._possible(entry)
        if can and at_once:  # Q5
            self._grant(entry, can, out)
            self._look_again(out)
        elif "NOQUEUE" in entry.flags:
            self._refuse(entry, "again", out)
            entry.asked, entry.flags, entry.value = former
        elif any("CONVDEADLK" not in other.flags for other in self._stuck_with(entry)):
            self._refuse(entry, "deadlock", out)
            entry.asked, entry.flags, entry.value = former
        else:
            stuck = self._stuck_with(entry)
            for other in stuck:
                other.held = "NL"
                other.said |= {"DEMOTED"}
            self.granted.remove(entry)
            self._line_up(self.converting, entry)
            if stuck:
                self._look_again(out)
            else:
                self._tell_of(entry, self.granted, out)
        return out

    def cancel(self, who: Who) -> Effects | None:
        """Withdraw what is queued (U1, U2, U6); ``None`` if nothing is (U3, E24)."""
        entry = self.find(who)
        if entry is None or entry in self.granted:
            return None
        if entry in self.waiting:
            self.waiting.remove(entry)
        else:
            self._back(entry)
        out: Effects = [("canceled", who, entry.held, entry.said)]
        self._look_again(out)
        return out

    def refuse(self, who: Who) -> Effects:
        """A queued one is refused after all, because of a deadlock with other names (D3, D8)."""
        entry = self.find(who)
        if entry is None or entry in self.granted:
            raise ValueError("nothing to refuse")
        if entry in self.waiting:
            self.waiting.remove(entry)
        else:
            self._back(entry)
        out: Effects = [("refused", who, "deadlock")]
        self._look_again(out)
        return out

    def unlock(self, who: Who, flags: Iterable[str] = (), value: bytes | None = None) -> Effects | None:
        """The end of a lock in any state (U4, U5, L3); ``None`` if there is none."""
        entry = self.find(who)
        if entry is None:
            return None
        if entry.held in ("PW", "EX"):
            self._write(frozenset(flags), value)
        self._drop(entry)
        out: Effects = [("gone", who)]
        self._look_again(out)
        return out

    def session_ends(self, who: Who) -> Effects:
        """P1, for one lock of the session."""
        entry = self.find(who)
        if entry is None:
            return []
        if not entry.persistent or entry in self.waiting:
            return self.unlock(who, ["IVVALBLK"]) or []  # L7
        if entry in self.converting:
            self._back(entry)
        entry.orphan, entry.listens = True, False
        out: Effects = []
        self._look_again(out)
        return out

    def nodes_end(self, nodes: Iterable[int]) -> Effects:
        """P2, L7."""
        gone = [entry for entry in self.all() if entry.who[0] in nodes]
        out: Effects = []
        for entry in gone:
            if entry.held in ("PW", "EX"):
                self.valid = False
            self._drop(entry)
        if gone:
            self._look_again(out)
        return out

    def again(self) -> Effects:
        """Nothing has changed, but others look at it now."""
        out: Effects = []
        self._look_again(out)
        return out

    def nothing(self) -> None:
        """No loss."""

    def lose_everything(self) -> None:
        """The one who knew the queues has gone (A7)."""
        self.granted, self.converting, self.waiting = [], [], []
        self.value, self.valid = b"", False

    def _adopt(self, entry: Entry, out: Effects) -> None:
        """P3, F4."""
        orphans = [other for other in self.granted if other.orphan and other.who[0] == entry.who[0]]
        alike = [other for other in orphans if other.held == entry.asked]
        if not alike:
            out.append(("refused", entry.who, "again" if orphans else "unknown"))
            return
        orphan = min(alike, key=lambda other: other.who)
        self.granted.remove(orphan)
        self.granted.append(entry)
        entry.persistent = True
        self._grant(entry, entry.asked, out, orphan.who)
        self._tell_holders(out)

    # -- who may have it -------------------------------------------------------------------------------------

    def all(self) -> list[Entry]:
        """Every lock, in whatever state."""
        return [*self.granted, *self.converting, *self.waiting]

    def queues(self) -> list[list[Entry]]:
        """The three lists themselves."""
        return [self.granted, self.converting, self.waiting]

    def queued(self) -> list[Entry]:
        """Those that want something which they do not have."""
        return [*self.converting, *self.waiting]

    def queue_of(self, entry: Entry) -> list[Entry]:
        """The list in which it stands."""
        return next(queue for queue in self.queues() if entry in queue)

    def find(self, who: Who) -> Entry | None:
        """The lock of that key."""
        for entry in self.all():
            if entry.who == who:
                return entry
        return None

    def _possible(self, entry: Entry) -> str:
        """The mode that no other holder is in the way of: the one asked for, or the other one (ALTPR, ALTCW)."""
        for mode in entry.wanted():
            if not any(conflict(other.held, mode) for other in self.all() if other is not entry):  # Q2, Q3
                return mode
        return ""

    def _stuck_with(self, entry: Entry) -> list[Entry]:
        """Who would make a conversion deadlock by what it holds, if this conversion were queued (D1, G30).

        Who is in front and wants what somebody behind holds waits for ever, and so does everybody behind.
        """
        if "NODLCKWT" in entry.flags:
            return []
        if "HEADQUE" in entry.flags:
            return [other for other in self.converting if conflict(other.held, entry.asked)]
        return [entry] if any(conflict(entry.held, other.asked) for other in self.converting) else []

    def _grant(self, entry: Entry, mode: str, out: Effects, was: Who | None = None) -> None:
        way = VALUE[entry.held][rank(mode)]
        if way == "W":
            self._write(entry.flags, entry.value)
        middle = {entry.held, mode} == {"PR", "CW"}
        if not entry.held or middle or rank(mode) > rank(entry.held):
            entry.fence = self.mint()  # F1
        said = set(entry.said)
        if mode != entry.asked:
            said.add("ALTMODE")
        if "VALBLK" in entry.flags and not self.valid:
            said.add("VALNOTVALID")  # L5
        read = self.value if way == "R" and "VALBLK" in entry.flags else None  # L1
        entry.held = entry.asked = mode
        entry.told, entry.said = "", frozenset()
        out.append(("ok", entry.who, mode, entry.fence, read, frozenset(said), was))

    def _look_again(self, out: Effects) -> None:
        """Q12, then B3."""
        while self._serve_one(out):
            pass
        self._tell_holders(out)

    def _serve_one(self, out: Effects) -> bool:
        for queue in (self.converting, self.waiting):
            for entry in list(queue):
                first = entry is queue[0] and (queue is self.converting or not self.converting)  # Q8, Q10
                if (first or "NOORDER" in entry.flags) and (can := self._possible(entry)):  # Q7
                    queue.remove(entry)
                    self.granted.append(entry)
                    self._grant(entry, can, out)
                    return True
        return False

    @staticmethod
    def _line_up(queue: list[Entry], entry: Entry) -> None:
        if "HEADQUE" in entry.flags:
            queue.insert(0, entry)
        else:
            queue.append(entry)

    def _back(self, entry: Entry) -> None:
        self.converting.remove(entry)
        self.granted.append(entry)
        entry.asked, entry.flags = entry.held, entry.former

    def _drop(self, entry: Entry) -> None:
        for queue in (self.granted, self.converting, self.waiting):
            if entry in queue:
                queue.remove(entry)
        if not self.all():
            self.value, self.valid = b"", True  # L10

    def _refuse(self, entry: Entry, why: str, out: Effects) -> None:
        out.append(("refused", entry.who, why))
        if why == "again" and "NOQUEUEBAST" in entry.flags:
            self._tell_of(entry, self.granted, out)  # B2
            self._tell_of(entry, self.converting, out)

    def _write(self, flags: frozenset[str], value: bytes | None) -> None:
        """L2, L3."""
        if "IVVALBLK" in flags:
            self.valid = False
        elif "VALBLK" in flags and value is not None:
            self.value, self.valid = value, True

    # -- who is told -----------------------------------------------------------------------------------------

    @staticmethod
    def _tell_of(entry: Entry, holders: list[Entry], out: Effects) -> None:
        """B1, B2: one that is blocked, to those in its way."""
        for other in sorted(holders, key=lambda one: one.who):
            if other is entry or not other.listens or not conflict(other.held, entry.asked):
                continue
            inverse = {other.held, entry.asked} == {"PR", "CW"}
            new = other.told != "EX" if inverse else rank(other.told) < rank(entry.asked)  # B5, B4
            if new:
                other.told = entry.asked
                out.append(("bast", other.who, entry.asked))

    def _tell_holders(self, out: Effects) -> None:
        """B3: the highest mode that is still asked for, and whether CW is."""
        asked = [entry.asked for entry in [*self.converting, *self.waiting]]
        if not asked:
            return
        high = max(asked, key=rank)
        for other in sorted(self.granted, key=lambda one: one.who):
            if not other.listens:
                continue
            if other.held == "PR" and "CW" in asked:
                if other.told != "EX":
                    other.told = high
                    out.append(("bast", other.who, "CW" if high == "PR" else high))
            elif rank(other.told) < rank(high) and conflict(other.held, high):
                other.told = high
                out.append(("bast", other.who, high))

    # -- for comparing ---------------------------------------------------------------------------------------

    def state(self) -> tuple[Any, ...]:
        """Who holds and wants what; granted locks have no order (S2)."""
        rows = [
            [(entry.who, entry.held, entry.asked, entry.fence, entry.orphan) for entry in queue]
            for queue in (self.granted, self.converting, self.waiting)
        ]
        return sorted(rows[0]), rows[1], rows[2], self.value, self.valid
