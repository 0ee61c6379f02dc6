"""By which roster the votes of a view are counted: the newest of its chain that a member knows. Pure.

Each member names the roster that it has stored with its mark (``Entry.digest``), or that its file gives it; the
rosters themselves travel once each in the commit token. The one that goes with the newest mark counts, as the lock
state of the newest mark goes on (K2, K4): a change that was made in a view from which the chain went on without it
is forgotten with that view's end. All members see the same entries, so all count alike.

While nobody has been in a primary view there are only files. They must be alike: else the view is not primary, and
says whose file differs in what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vsync.quorum import marked
from vsync.roster import Roster, differences
from vsync.types import NO_RING, Entry

__all__ = ["counted", "roster_of"]

SHOWN = 4  #: differences that are named


def counted(entries: Mapping[int, Entry], rosters: Mapping[bytes, Roster]) -> dict[int, Entry]:
    """The entries with the votes that count. ``rosters`` by digest; without any the entries stay as they are.

    A member whose id was removed or given to another machine since it stored its mark has none any more.
    """
    named = {node: rosters[entry.digest] for node, entry in sorted(entries.items()) if entry.digest in rosters}
    if not named:
        return dict(entries)
    roster, differs = _choose(entries, named)
    unknown = [node for node, entry in sorted(entries.items()) if node not in named and entry.mark.seq]
    if unknown:
        differs = f"node {unknown[0]} counts by a roster that nobody has sent"
    total = sum(roster.votes.values())
    first = min((node for node, votes in roster.votes.items() if votes), default=0)
    made = {}
    for node, entry in sorted(entries.items()):
        if node not in named or named[node].birth(node) != roster.birth(node):
            entry = replace(entry, mark=NO_RING, bases=())
        made[node] = replace(
            entry,
            votes=roster.votes.get(node, 0),
            expected_votes=total,
            nodes=len(roster.peers),
            first=first,
            roster=roster,
            differs=differs,
        )
    return made


def roster_of(entries: Mapping[int, Entry]) -> Roster | None:
    """The roster that these entries have been counted by."""
    return next((entry.roster for entry in entries.values()), None)


def _choose(entries: Mapping[int, Entry], named: Mapping[int, Roster]) -> tuple[Roster, str]:
    """The roster that counts, and in what the nodes' files differ if there is none yet."""
    chain = [entry.member.node for entry in marked(entries.values()) if entry.member.node in named]
    stored = [node for node in chain if named[node].version]
    if stored:
        newest = max(stored, key=lambda node: (entries[node].mark, named[node].version, -node))
        return named[newest], ""
    pool = sorted(chain or named)
    first = named[pool[0]]
    return first.agreed(), _quarrel({node: named[node] for node in pool})


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
