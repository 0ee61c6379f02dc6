"""Is a view primary? Pure, and computed from the commit token alone, so that all members agree with the view (K1).

Every member's entry says what it votes with: its votes, the *mark* it has stored – the last primary view it was
in – and the policy it is configured with. A node without a mark has no vote (K8): it may have lost one. Any two
primary views that follow each other share a member under every policy but ``two_node`` and ``none``; so the
newest mark that is present tells which lock state is the newest (``docs/quorum.md`` has the table of what holds
under each).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import IntFlag

from vsync.types import NO_RING, Base, Entry, QuorumConfig, RingId

__all__ = [
    "REMOVED",
    "Says",
    "Terms",
    "Verdict",
    "base_of",
    "bootstrapped",
    "judge",
    "known_lineage",
    "lineage_of",
    "marked",
    "newest_mark",
    "tally",
    "terms_of",
]


class Terms(IntFlag):
    """The policy, as it travels in the commit token. None of these: ``majority``."""

    LAST_MAN_STANDING = 1
    TWO_NODE = 2
    NONE = 4
    WAIT_FOR_ALL = 8
    AUTO_TIE_BREAKER = 16


class Says(IntFlag):
    """What else a member says."""

    BOOTSTRAP = 1  #: an operator: nodes without a mark may vote, if nobody here has one
    WAITING = 2  #: it has not been in a primary view since it started (wait_for_all)
    OVERRIDE = 4  #: an operator: primary, whatever the votes
    UNSURE = 8  #: its mark is of a first view that it committed to before it crashed, and that may never have been


#: Of a node that is not in its roster any more.
REMOVED = "node {node} was removed from the cluster: stop it, or bring it back with vsync nodes add at a member"

_POLICIES = {
    "majority": Terms(0),
    "last_man_standing": Terms.LAST_MAN_STANDING,
    "two_node": Terms.TWO_NODE,
    "none": Terms.NONE,
}


def terms_of(config: QuorumConfig) -> Terms:
    """The policy of a configuration. ``two_node`` brings ``wait_for_all`` along."""
    terms = _POLICIES[config.policy]
    if config.wait_for_all or config.policy == "two_node":
        terms |= Terms.WAIT_FOR_ALL
    if config.auto_tie_breaker:
        terms |= Terms.AUTO_TIE_BREAKER
    return terms


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a view is primary, with how many of which votes, and why – in words for people.

    ``chained``: the newest mark that is present is the newest there is. If not – all nodes are there, but most have
    lost what they had stored – there is no other part of the cluster that could act, but an old state must not
    go on.
    """

    primary: bool
    votes: int
    expected: int
    why: str
    chained: bool = True


def tally(entries: Iterable[Entry]) -> tuple[int, int]:
    """(votes present, votes expected) of a view, whoever may vote."""
    votes = expected = 0
    for entry in entries:
        votes += entry.votes
        expected = max(expected, entry.expected_votes)
    return votes, expected


def judge(entries: Mapping[int, Entry]) -> Verdict:
    """The verdict on a view with these entries (QUO-Q1, K8, pitfalls C5, C7, C8). ``entries`` is not empty."""
    every = [entries[node] for node in sorted(entries)]
    terms = Terms(every[0].terms)
    votes, expected = tally(every)
    everybody = _everybody(entries)
    if any(entry.terms != terms for entry in every):
        return Verdict(False, votes, expected, "the [quorum] sections of these nodes differ: make them alike")
    if terms & Terms.NONE:
        return Verdict(True, votes, expected, "policy none: every view is primary")
    roster = every[0].roster
    if roster is not None and not any(node in entries for node in roster.nodes):
        return Verdict(False, 0, expected, REMOVED.format(node=every[0].member.node))
    if every[0].differs:
        return Verdict(False, votes, expected, every[0].differs)
    if any(entry.says & Says.OVERRIDE for entry in every):
        return Verdict(True, votes, expected, "an operator has overridden the quorum")
    if len({_sure(entry) for entry in every} - {0}) > 1:
        return Verdict(False, votes, expected, "nodes of two lineages: one has the disk of another cluster")
    voters = marked(every)
    if not voters:
        if not everybody and not any(entry.says & Says.BOOTSTRAP for entry in every):
            missing = max(entry.nodes for entry in every) - len(every)
            why = f"no node here has been in this cluster yet: {missing} more must come, or run vsync bootstrap"
            return Verdict(False, 0, expected, why)
        voters = every
    verdict = _count(voters, terms, expected, everybody)
    if everybody and not verdict.primary:
        why = f"all nodes are here, though {verdict.why} are of nodes that know this cluster: what was held is lost"
        return Verdict(True, votes, expected, why, chained=False)
    new = [str(entry.member.node) for entry in every if entry not in voters and entry.votes]
    if new:
        have = f"node {new[0]} has" if len(new) == 1 else f"nodes {', '.join(new)} have"
        verdict = replace(verdict, why=f"{verdict.why}; {have} no vote before being in a primary view")
    return verdict


def _everybody(entries: Mapping[int, Entry]) -> bool:
    roster = next(entry.roster for entry in entries.values())
    if roster is None:  # each has its own idea of how many there are
        return len(entries) >= max(entry.nodes for entry in entries.values())
    return all(node in entries for node in roster.nodes)


def _count(voters: list[Entry], terms: Terms, expected: int, everybody: bool) -> Verdict:
    if terms & Terms.WAIT_FOR_ALL and not everybody and all(entry.says & Says.WAITING for entry in voters):
        votes = sum(entry.votes for entry in voters)
        return Verdict(False, votes, expected, "wait_for_all: all nodes must come together once after a start")
    verdict = Verdict(False, 0, expected, "")
    for electorate in _electorates(voters, terms, expected):
        verdict = _poll(voters, electorate, terms)
        if not verdict.primary:
            break
    return verdict


_Electorate = tuple[dict[int, int], int, int]  #: votes by node, votes in all, the node that breaks a tie


def _electorates(voters: list[Entry], terms: Terms, expected: int) -> list[_Electorate]:
    """In each of these a majority is needed.

    With ``last_man_standing`` they are the members of the newest primary view that came to be for certain, and of
    each one after it that may have come to be, whoever knows of it: an absent node may know that it did, or that it
    did not and count from the one before (K7, C8).
    """
    newest = max(voters, key=lambda entry: entry.mark)
    if terms & Terms.LAST_MAN_STANDING and any(entry.bases for entry in voters):
        bases = [dict(base) for base in possible_bases(voters)]
        return [(base, sum(base.values()), min((n for n in base if base[n]), default=0)) for base in bases]
    return [({entry.member.node: entry.votes for entry in voters}, expected, newest.first), *_others(newest)]


def possible_bases(voters: Iterable[Entry]) -> list[Base]:
    """Those of the newest view that came to be for certain and of all that may have come to be after it."""
    known = [entry.bases for entry in voters if entry.bases]
    certain = max(bases[-1][0] for bases in known)
    possible = {ring: base for bases in known for ring, base in bases if ring >= certain}
    return [possible[ring] for ring in sorted(possible, reverse=True)]


def _others(entry: Entry) -> list[_Electorate]:
    """By rosters that may be what counts, too (``vsync.counting``); who is another machine there has no vote."""
    known = entry.roster
    found = []
    for roster in entry.also:
        votes = {n: v for n, v in roster.votes.items() if known is not None and known.birth(n) == roster.birth(n)}
        first = min((node for node, vote in roster.votes.items() if vote), default=0)
        found.append((votes, sum(roster.votes.values()), first))
    return found


def _poll(voters: list[Entry], electorate: _Electorate, terms: Terms) -> Verdict:
    base, expected, first = electorate
    votes = sum(base.get(entry.member.node, 0) for entry in voters)
    enough = f"{votes} of {expected} votes"
    tie_broken = terms & Terms.AUTO_TIE_BREAKER and any(entry.member.node == first for entry in voters)
    if votes * 2 > expected:
        return Verdict(True, votes, expected, enough)
    if votes * 2 == expected and tie_broken:
        return Verdict(True, votes, expected, f"{enough}, with node {first}, which breaks the tie")
    if terms & Terms.TWO_NODE and votes and expected == 2:
        return Verdict(True, votes, expected, f"{enough}, policy two_node")
    return Verdict(False, votes, expected, f"only {enough}")


def marked(entries: Iterable[Entry]) -> list[Entry]:
    """Those that have a mark of the chain that these nodes belong to (K8, C7).

    Who crashed at the very beginning of a chain does not know whether that came to be (K7): its mark counts unless
    the others belong to another chain, or have gone further than it in their own attempts to begin one.
    """
    every = [entry for entry in entries if entry.mark.seq]
    chains = {_sure(entry) for entry in every} - {0}
    if every and not chains:
        chains = {max(every, key=lambda entry: entry.mark).lineage}
    return [entry for entry in every if entry.lineage in chains]


def newest_mark(entries: Iterable[Entry]) -> RingId:
    """The newest primary view that any of these nodes knows of."""
    return max((entry.mark for entry in marked(entries)), default=NO_RING)


def bootstrapped(entries: Mapping[int, Entry]) -> dict[int, Entry]:
    """The entries, had an operator said that nodes without a mark may vote."""
    return {node: replace(entry, says=entry.says | Says.BOOTSTRAP) for node, entry in entries.items()}


def lineage_of(view: RingId, entries: Mapping[int, Entry]) -> int:
    """The chain that a primary view belongs to: its members', or a new one, named after its first (C7).

    0 under policy ``none``: where every view is primary there is no chain, and each node would begin its own.
    """
    if any(entry.terms & Terms.NONE for entry in entries.values()):
        return 0
    known = known_lineage(entries.values())
    if not known:
        likely = max(marked(entries.values()), key=lambda entry: entry.mark, default=None)
        known = likely.lineage if likely is not None else 0
    return known or _name(view, entries)


def known_lineage(entries: Iterable[Entry]) -> int:
    """The chain that some of these nodes have been in for certain; 0 if none of them has been in one."""
    return max((_sure(entry) for entry in entries), default=0)


def _sure(entry: Entry) -> int:
    return 0 if entry.says & Says.UNSURE else entry.lineage


def _name(first: RingId, nodes: Iterable[int]) -> int:
    seed = repr((tuple(first), sorted(nodes))).encode()
    return int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest(), "big") >> 1 | 1


def base_of(entries: Mapping[int, Entry]) -> Base:
    """Nodes and votes of a view, as they are stored with its mark."""
    return tuple((node, entry.votes) for node, entry in sorted(entries.items()))
