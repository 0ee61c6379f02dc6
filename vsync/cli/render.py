"""The same answers for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from vsync.cli.table import show
from vsync.events import ClusterView

__all__ = ["groups", "links", "members", "status", "view_line"]


def status(answer: Mapping[str, Any]) -> None:
    """``vsync status``."""
    node, view, ring = answer["node"], answer["view"], answer["ring"]
    click.echo(f"Cluster {answer['cluster']}, seen from node {node['name']} ({node['id']})")
    if view is None:
        click.echo("No view yet: this node has not formed or joined a ring")
    else:
        verdict = "PRIMARY" if view["primary"] else "NON-PRIMARY"
        votes = f"{answer['votes']} of {answer['expected_votes']} votes"
        click.echo(f"View    {view['id']}  {verdict}  {votes}  since {_duration(answer['since_us'])}")
        click.echo(f"Reason  {view['reason']}")
        why = answer["quorum"]["why"]
        if why != votes:  # it is not primary, or not by votes alone
            click.echo(f"Quorum  {why}")
    if remedy := answer["services"].get("nodes", {}).get("remedy"):
        click.echo(f"Nodes   {remedy}")
    for row in ring["refused"]:
        click.echo(f"Refused node {row['node']}: {row['why']}")
    click.echo(f"Ring    {ring['state']}  delivered {ring['delivered']}  waiting {ring['queue']}")
    click.echo("")
    members(answer["nodes"])
    click.echo("")
    if answer.get("transport", {}).get("links"):
        links(answer["transport"])
        click.echo("")
    own = {k: v for k, v in answer["services"].get("nodes", {}).items() if k in ("version", "under_way")}
    sections: dict[str, Any] = {**answer["services"], "nodes": own}
    sections |= {"ring": ring["counters"], "io": answer.get("io", {})}
    for name, section in sections.items():
        _section(name, section)


def members(rows: Sequence[Mapping[str, Any]]) -> None:
    """``vsync members``."""
    table = []
    for row in rows:
        role = " ".join(
            word for word, holds in (("local", row["local"]), ("representative", row["representative"])) if holds
        )
        table.append((row["id"], row["name"], row["address"], row["votes"], row["state"], role or "-"))
    show(("ID", "NAME", "ADDRESS", "VOTES", "STATE", "ROLE"), table)


def links(transport: Mapping[str, Any]) -> None:
    """The links to the other nodes: ``*`` marks those in use."""
    key = f"sealed with key {transport['key']}" if transport.get("key") else "not authenticated"
    click.echo(f"Links   {transport['name']}, {key}")
    rows = []
    for row in transport["links"]:
        rtt = "-" if row["rtt_us"] is None else f"{row['rtt_us'] / 1000:.2f}"
        use = "*" if row["used"] else ""
        rows.append((row["name"], row["link"], row["address"], row["state"] + use, rtt, row["loss"], row["downs"]))
    show(("NODE", "LINK", "ADDRESS", "STATE", "RTT ms", "LOSS %", "DOWNS"), rows)


def groups(answer: Mapping[str, Sequence[Mapping[str, Any]]], names: Mapping[int, str]) -> None:
    """``vsync groups``."""
    rows = [
        (group, names.get(p["node"], p["node"]), p["session"], p.get("pid"), p["name"])
        for group, processes in answer.items()
        for p in processes
    ]
    if rows:
        show(("GROUP", "NODE", "SESSION", "PID", "PROGRAM"), rows)
    else:
        click.echo("No groups")


def view_line(view: ClusterView) -> str:
    """One line of ``vsync watch``."""
    kind = "transitional" if view.transitional else "primary" if view.primary else "non-primary"
    parts = [view.id, f"{kind:<12}", ",".join(m.name for m in view.members)]
    parts += [f"+{m.name}" for m in view.joined] + [f"-{m.name}" for m in view.left]
    return "  ".join([" ".join(parts), f"({view.reason})"])


def _section(name: str, section: Mapping[str, Any]) -> None:
    """A service's status, whatever it is: numbers and words as they are, collections by their size; but for what it
    waits for (``waiting``: rows with ``text`` and ``remedy``), which is what people look for.
    """
    parts = []
    waiting = section.get("waiting")
    for key, value in section.items():
        if key == "waiting":
            continue
        if isinstance(value, Mapping | list | tuple):
            parts.append(f"{key}[{len(value)}]")
        elif value is not None and value != 0:
            parts.append(f"{key}={value}")
    if parts:
        click.echo(f"{name}: {'  '.join(parts)}")
    for row in waiting if isinstance(waiting, list | tuple) else ():
        click.echo(f"{name}: {row['text']}")
        click.echo(f"{' ' * len(name)}  {row['remedy']}")


def _duration(us: int | None) -> str:
    seconds = (us or 0) / 1_000_000
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d {h:02}:{m:02}"
    return f"{h}:{m:02}:{s:02}"
