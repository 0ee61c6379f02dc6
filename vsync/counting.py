"""By which roster the votes of a view are counted: the newest of its chain that a member knows. Pure.

Each member names the roster that it has stored with its mark (``Entry.names``), or that its file gives it; the
rosters themselves travel once each in the commit token. The one that goes with the newest mark counts, as the lock
state of the newest mark goes on (K2, K4): a change that was made in a view from which the chain went on without it
is forgotten with that view's end. All members see the same entries, so all count alike.

A mark may be that of a view that never came to be: one that a former life of the member committed to, and no more
is known (K7). Its roster may be that of a guess. Then the view must have a majority by each roster that may be what
counts. One that is older than what is known to have been in force is no such: between two views in force there is a
member of both, who would have brought the newer one along.

While nobody has been in a primary view there are only files. They must be alike: else the view is not primary, and
says whose file differs in what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from vsync.quorum import marked
from vsync.roster import Roster, differences
from vsync.types import NO_RING, Entry, RingId

__all__ = ["counted", "roster_of"]

SHOWN = 4  #: differences that are named


class _Named(NamedTuple):
    mark: RingId
    roster: Roster


def counted(entries: Mapping[int, Entry], rosters: Mapping[bytes, Roster]) -> dict[int, Entry]:
    """The entries with the votes that count. ``rosters`` by digest; without any the entries stay as they are.

    A member whose id was removed or given to another machine since it stored its mark has none any more.
    """
    named = {node: _known(entry, rosters) for node, entry in sorted(entries.items())}
    if not any(named.values()):
        return dict(entries)
    roster, also, differs = _choose(entries, {node: names for node, names in named.items() if names})
    unknown = [node for node, entry in sorted(entries.items()) if not named[node] and entry.mark.seq]
    if unknown:
        differs = f"node {unknown[0]} counts by a roster that nobody has sent"
    total = sum(roster.votes.values())
    first = min((node for node, votes in roster.votes.items() if votes), default=0)
    made = {}
    for node, entry in sorted(entries.items()):
        if not named[node] or named[node][0][1].birth(node) != roster.birth(node):
            entry = replace(entry, mark=NO_RING, bases=())
        made[node] = replace(
            entry,
            votes=roster.votes.get(node, 0),
            expected_votes=total,
            nodes=len(roster.peers),
            first=first,
            roster=roster,
            also=also,
            differs=differs,
        )
    return made


def roster_of(entries: Mapping[int, Entry]) -> Roster | None:
    """The roster that these entries have been counted by."""
    return next((entry.roster for entry in entries.values()), None)


def _known(entry: Entry, rosters: Mapping[bytes, Roster]) -> list[_Named]:
    """What an entry names, the newest first; nothing if a roster is missing."""
    if not all(digest in rosters for _, digest in entry.names):
        return []
    return [_Named(mark, rosters[digest]) for mark, digest in entry.names]


def _choose(
    entries: Mapping[int, Entry], named: Mapping[int, list[_Named]]
) -> tuple[Roster, tuple[Roster, ...], str]:
    """The roster that counts; others that may; in what the nodes' files differ, if there is nothing else yet."""
    chain = [entry.member.node for entry in marked(entries.values()) if entry.member.node in named]
    sure = [(*named[node][-1], 1 - entries[node].pending) for node in chain if named[node][-1].roster.version]
    doubt = [each for node in chain for each in named[node][:-1]]
    likely = []
    if sure:
        mark, roster, in_force = max(sure, key=lambda each: (each[0], each[1].version, each[2]))
        least = roster.version if in_force else roster.version - 1
        doubt = [each for each in doubt if each.mark > mark and each.roster.version >= least]
        likely = [_Named(mark, roster)]
    likely = sorted(likely + doubt, key=lambda each: (each.mark, each.roster.version), reverse=True)
    if likely:
        others = {each.roster.digest: each.roster for each in likely if each.roster != likely[0].roster}
        return likely[0].roster, tuple(others.values()), ""
    pool = sorted(chain or named)
    files = {node: named[node][-1].roster for node in pool}
    return files[pool[0]].agreed(), (), _quarrel(files)


def _quarrel(files: Mapping[int, Roster]) -> str:
    one, *others = files
    said = []
    for node in others:
        if files[node] != files[one]:
            what = differences(files[node], files[one])
            more = [f"{len(what) - SHOWN} more"] if len(what) > SHOWN else []
            said.append(f"that of node {node}: {'; '.join(what[:SHOWN] + more)}")
    if not said:
        return ""
    return f"the [[nodes]] of these nodes' files differ from node {one}'s: {', '.join(said)}: make them alike"
