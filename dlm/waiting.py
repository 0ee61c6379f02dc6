"""What this node's answers wait for: one record for each reason, for people and programs, most important first.

A record has ``for`` (``FOR``), ``node`` (that it is about, or ``None``) and ``nodes``, ``space`` (``None``: all of
them), ``since_us`` and ``until_us`` (µs ago, and from now; ``None``: not known), ``text``, and ``remedy``: what can
be done about it. The same records stand in the status, in ``why`` and in what ``dlm ls`` prints.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dlm.failures import EVERYWHERE, Failure
from dlm.messages import split_key
from dlm.options import DELAY, FENCING, RECOVERY
from dlm.withheld import known

if TYPE_CHECKING:
    from dlm.home import Home
    from dlm.service import DlmService

__all__ = ["FOR", "records"]

FOR = ("quorum", "catch-up", "transfer", "lease", "leaving", "horizon", "fencing", "recovery", "delay", "stable")

Row = dict[str, Any]


def records(service: DlmService, space: str | None = None, key: bytes | None = None) -> list[Row]:
    """All of them; or those that concern a lockspace, or one name."""
    space = split_key(key)[0] if key is not None else space
    home = service.home
    found = [*_node(service), *_horizon(home, key)]
    failures = home.table.failures
    waiting = failures.waiting(key) if key is not None else [each for each in failures.every if each.matters]
    wanted = [each for each in waiting if space is None or each.space in (space, EVERYWHERE)]
    found += [*_fencing(home, wanted), *_recovery(home, wanted), *_delay(home, wanted), *_stable(home, key)]
    return found


def _node(service: DlmService) -> Iterator[Row]:
    """What this node lacks."""
    home, lease = service.home, service.lease_clock
    since, state = home.now - lease.entered, service.state
    if state == "no quorum":
        absent = ", ".join(_absent(service)) or "nobody"
        remedy = f"start the missing nodes ({absent}) or repair what is between them; vsync status says why"
        text = f"no answers: this node is not in the primary component since {_span(since)}"
        yield _row("quorum", text, remedy, since)
    elif state == "catching up":
        text = f"no answers: this node catches up with what it has missed since {_span(since)}"
        yield _row("catch-up", text, "nothing: others send it what it lacks", since)
    elif state == "joining":
        text = f"no answers: this node has not got the lock table from the others yet, since {_span(since)}"
        yield _row("transfer", text, "nothing: others send it, beside their work", since)
    elif not lease.valid(home.now) and not service.leaving_now:
        since = home.now - max(lease.deadline, lease.entered)
        text = f"grants wait: this node has no lease since {_span(since)}, it does not hear from the ring"
        yield _row("lease", text, "see vsync status: a member does not answer, or this host is overloaded", since)
    if service.leaving_now:
        yield _row("leaving", "this node is leaving the cluster: no new locks", "ask another node")


def _horizon(home: Home, key: bytes | None) -> Iterator[Row]:
    """The leases of nodes that vanished."""
    lease, left = home.lease, home.lease.horizon - home.now
    if left <= 0 or (key is not None and known(home, key)):
        return
    nodes = sorted(lease.vanished)
    who = f"node{'s' if len(nodes) > 1 else ''} {', '.join(map(str, nodes))} vanished" if nodes else lease.why
    text = f"answers wait until the horizon because {who}: {left / 1e6:.1f} s left"
    row = _row("horizon", text, "nothing: it ends by itself", home.now - lease.waits_since, left)
    yield {**row, "nodes": nodes, "node": nodes[0] if len(nodes) == 1 else None}


def _fencing(home: Home, failures: list[Failure]) -> Iterator[Row]:
    """One for each life, however many lockspaces want it."""
    for member in sorted({each.member for each in failures if each.needs & FENCING}):
        mine = [each for each in failures if each.member == member and each.needs & FENCING]
        since = home.now - min(each.since for each in mine)
        name, row = home.host.config.name(member.node), home.stonith.row(member)
        text = f"waiting for fencing of node {member.node} since {_span(since)}; {home.stonith.words(member)}"
        remedy = f"if the node is certainly down: dlm fence-ack {name}"
        if row["actor"] is None:
            remedy = f"configure an agent, [dlm.fencing.{name}], at some node; or {remedy}"
        elif row["exit"] is not None or row["attempts"]:
            remedy = f"repair the agent or its device; or {remedy}"
        spaces = {each.space for each in mine}
        yield _about(_row("fencing", text, remedy, since), member.node, spaces.pop() if len(spaces) == 1 else None)


def _recovery(home: Home, failures: list[Failure]) -> Iterator[Row]:
    for each in failures:
        if each.needs & RECOVERY:
            since = home.now - each.since
            text = f"waiting for recovery of lockspace {each.space} from the failure of node {each.node}"
            later = "" if home.clearing.ready(each) else " (it is too early for that)"
            remedy = f"an application recovers and says so, or: dlm recovered {each.space} {each.node}"
            row = _row("recovery", f"{text} since {_span(since)}{later}", remedy, since)
            yield _about(row, each.node, each.space)


def _delay(home: Home, failures: list[Failure]) -> Iterator[Row]:
    """By this node's clock: the one that decides may have learnt of it a little later."""
    for each in failures:
        if each.needs & DELAY:
            since, left = home.now - each.since, max(0, home.clearing.due(each) - home.now)
            text = f"waiting for the lock_delay of lockspace {each.space} after the failure of node {each.node}"
            remedy = f"nothing: it ends by itself; or dlm space set {each.space} --lock-delay 0"
            row = _row("delay", f"{text} since {_span(since)}: {left / 1e6:.1f} s left", remedy, since, left)
            yield _about(row, each.node, each.space)


def _stable(home: Home, key: bytes | None) -> Iterator[Row]:
    """Members that do not keep up."""
    backlog = home.teller.backlog
    waiting = [each for each in backlog.unsettled.values() if key is None or each.key == key]
    count = len(waiting) + (len(backlog.writes) if key is None else 0)
    if count:
        since = home.now - backlog.unsettled_since
        text = f"{count} answer{'s' if count > 1 else ''} wait until all members have what decided them"
        remedy = "nothing: it takes two rotations of the token; if it lasts, see vsync status for who is slow"
        yield _row("stable", f"{text}, since {_span(since)}", remedy, since)


def _row(why: str, text: str, remedy: str, since: int | None = None, until: int | None = None) -> Row:
    times = {"since_us": since, "until_us": until}
    return {"for": why, "node": None, "nodes": [], "space": None, **times, "text": text, "remedy": remedy}


def _about(row: Row, node: int, space: str | None) -> Row:
    return {**row, "node": node, "nodes": [node], "space": None if space == EVERYWHERE else space}


def _absent(service: DlmService) -> list[str]:
    view, config = service.host.view, service.host.config
    present = view.nodes if view is not None else ()
    return [peer.name for peer in config.peers if peer.node not in present]


def _span(us: int) -> str:
    """For people: ``0.3 s``, ``41 s``, ``12 min``, ``3 h``."""
    seconds = max(0, us) / 1e6
    if seconds < 10:
        return f"{seconds:.1f} s"
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.0f} days"
