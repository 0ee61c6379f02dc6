"""Who fences a node that failed, and when: the *actor* runs the agent, others take over (locks.md §7.3).

A failure is known to all members at one position, and so is what has been tried (``failures.tries``), as every step
of an actor is an ordered message, FENCE_TRIED. From these and the view each member computes the same actor: the one
that has the work until it gives up or is gone; then the next of those that have an agent for the node, round and
round. Nobody runs an agent before its claim to the work has come back in the order of a primary view, and an agent
whose work has become void – another actor, no primary view, the node is back – is killed. An actor gives up after
``retries``; from the second round on there is a pause before every attempt, which doubles each round.

That a node is fenced is the ordered CLEARED, sent when an agent has ended with exit code 0. A time-out is a
failure, as an assumption is no proof.

Pure; a part of the service, which calls ``look`` whenever something may have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from dlm.agents import Agent, gist, unfenced_peers
from dlm.failures import EVERYWHERE
from dlm.messages import Kind
from dlm.options import FENCING
from vsync.types import ClusterConfig, Member

if TYPE_CHECKING:
    from dlm.home import Home
    from dlm.recovery import Chosen
    from dlm.table import Effects, Life, Table

__all__ = ["HANDLERS", "Stonith", "Try", "actor_of"]

SECOND = 1_000_000
RETRY_US = SECOND  #: between two attempts of an actor
PAUSE_US = 5 * SECOND  #: before an attempt in the second round; doubles with each
MAX_PAUSE_US = 300 * SECOND
#: Nodes that were never seen since a cluster without exclusion has started get so long to come by themselves.
STARTUP_US = 30 * SECOND


class Try(NamedTuple):
    """What has been tried to fence a node, as all members know it. msgpack takes it."""

    actor: int  #: who has the work, or had it last
    attempts: int = 0  #: of this actor that have failed
    code: int | None = None  #: exit code of the last attempt
    text: str = ""  #: what it said
    over: bool = False  #: the actor has given up
    given_up: int = 0  #: how many actors have


def last_try(table: Table, target: Member) -> Try | None:
    """What was tried last to fence this life."""
    row = table.failures.tries.get(target)
    return None if row is None else Try(*row)


def actor_of(order: tuple[int, ...], last: Try | None) -> int | None:
    """Who has the work: of ``order``, the members with an agent for the node, who first of all; or nobody."""
    if not order:
        return None
    if last is None:
        return order[0]
    if last.actor not in order:
        return min((node for node in order if node > last.actor), default=order[0])
    if not last.over:
        return last.actor
    return order[(order.index(last.actor) + 1) % len(order)]


def tried(table: Table, life: Life, body: tuple[Any, ...], out: Effects) -> None:
    """FENCE_TRIED: a member claims the work (no attempts yet), has failed in it, or gives it up."""
    node, incarnation, attempts, code, text, over = body
    target, tries = Member(node, incarnation), table.failures.tries
    if table.failures.needs_fencing(target):
        before = last_try(table, target)
        given_up = (before.given_up if before is not None else 0) + bool(over)
        tries[target] = Try(life.node, attempts, code, text, bool(over), given_up)


HANDLERS: dict[int, Callable[[Table, Life, tuple[Any, ...], Effects], None]] = {Kind.FENCE_TRIED: tried}


class Step(Enum):
    """How far this node is with a failure that is its work."""

    CLAIM = "claims the work"
    WAIT = "waits"
    RUN = "runs the agent"
    PASS = "gives the work up"


class Job:
    """A failure that is this node's work."""

    __slots__ = ("attempts", "due", "step", "ticket")

    def __init__(self, attempts: int) -> None:
        self.step = Step.CLAIM
        self.attempts = attempts  #: that have failed
        self.due = 0  #: of the next one
        self.ticket = 0  #: of the running program


class Stonith:
    """The fencing of one node's service: its agents, and its work. ``jobs`` are by the life that failed."""

    def __init__(self, home: Home, agents: Mapping[int, Agent]) -> None:
        self.agents = dict(agents)
        self.jobs: dict[Member, Job] = {}
        self._home = home
        self._host = home.host
        self._me = home.host.me.node
        self._order: dict[int, tuple[int, ...]] = {}  #: by node: those with an agent for it, who first of all
        self._leaving = False
        self._ticket = 0
        self._running: dict[int, Member] = {}  #: by ticket
        self._fenced: dict[Member, bool] = {}  #: by agents here, and not cleared yet; whether that was said
        self._asked: list[tuple[int, int, Member]] = []  #: (session, request, whom) of operators who said so
        self._checks: dict[int, tuple[int, int, int]] = {}  #: by ticket: (session, request, node)

    # -- what the service tells

    def entered(self, chosen: Chosen, agents: Mapping[int, tuple[int, ...]]) -> None:
        """A primary view; ``agents``: for which nodes its members have agents. Who has the table is asked first."""
        full = sorted(node for node in agents if node in chosen.full or not chosen.full)
        members = [*full, *sorted(set(agents) - set(full))]
        targets = sorted({target for mine in agents.values() for target in mine})
        if self._me not in chosen.full:
            self.frozen()  # not its state that goes on: it knows only later what is to be done
        self._order = {
            target: tuple(node for node in members if target in agents[node] and node != target)
            for target in targets
        }

    def frozen(self) -> None:
        """No primary view: others may decide otherwise by now, so nothing is done."""
        for target in list(self.jobs):
            self._drop(target)

    def new_life(self) -> None:
        """What was said in the former life may not have been heard."""
        self.frozen()
        self._fenced = dict.fromkeys(self._fenced, False)
        for session, rid, target in self._asked:
            text = f"this node's part in the cluster has ended meanwhile: ask again about node {target.node}"
            self._host.refuse(session, rid, "lost", text)
        self._asked.clear()

    def leaving(self) -> None:
        """This node is about to go: others take over."""
        self._leaving = True
        self.frozen()

    def look(self) -> None:
        """Something may have changed: take the work on, go on with it, or leave it."""
        if not self._home.open or self._home.holding or self._leaving:
            return
        pending = self._pending()
        for target in [target for target in self.jobs if target not in pending]:
            self._drop(target)
        self._fenced = {target: said for target, said in self._fenced.items() if target in pending}
        for target in pending:
            if target not in self._fenced:
                self._work(target)
            elif not self._fenced[target]:
                self._fenced[target] = True
                agent = self.agents.get(target.node)
                self._clear(target, f"{agent.program if agent else 'an agent'} at {self._config.name(self._me)}")
        self._answer(pending)

    def run(self) -> None:
        """A token, or time has passed. Costs nothing if nobody has failed."""
        if self.jobs or self._fenced or self._asked or self._home.table.failures:
            self.look()
            if not self._home.holding:
                self.fire()

    def fire(self) -> None:
        """Run the agents that are due."""
        for target, job in list(self.jobs.items()):
            if job.step is Step.WAIT and job.due <= self._home.now:
                self._run(target, job)

    def next_deadline(self) -> int | None:
        """When ``fire`` has something to do."""
        if not self.jobs:
            return None
        return min((job.due for job in self.jobs.values() if job.step is Step.WAIT), default=None)

    def spawned(self, ticket: int, code: int | None, output: bytes) -> None:
        """An agent has ended."""
        if ticket in self._checks:
            self._checked(ticket, code, output)
            return
        target = self._running.pop(ticket, None)
        if target is None:
            return
        job, agent = self.jobs.get(target), self.agents[target.node]
        if job is not None and job.ticket != ticket:
            job = None
        text = gist(agent, output)
        if code == 0:
            self._fenced[target] = False  # a fact, whoever's work it is by now
            self._host.event("dlm.fenced", **self._about(target), said=text)
            self.jobs.pop(target, None)
            self.look()
        elif job is not None:
            self._failed(target, job, code, text)

    # -- the work

    def _work(self, target: Member) -> None:
        """One failure that is not fenced yet."""
        last, job = last_try(self._home.table, target), self.jobs.get(target)
        if job is not None and job.step is Step.PASS and last is not None and last.over:
            del self.jobs[target]
            job = None
        if actor_of(self._order.get(target.node, ()), last) != self._me:
            self._drop(target)
        elif last is None or last.over or last.actor != self._me:
            if job is None:
                self.jobs[target] = Job(0)
                self._tell(target, 0, None, "", over=False)
        elif job is None or job.step is Step.CLAIM:
            job = self.jobs[target] = Job(last.attempts)
            job.step, job.due = Step.WAIT, self._home.now + self._first_pause(target, last)

    def _run(self, target: Member, job: Job) -> None:
        agent = self.agents[target.node]
        self._ticket += 1
        job.step, job.ticket = Step.RUN, self._ticket
        self._running[self._ticket] = target
        self._host.event("dlm.fencing", **self._about(target), action=agent.action, attempt=job.attempts + 1)
        self._host.spawn("dlm", self._ticket, [agent.program], agent.stdin, agent.timeout)

    def _failed(self, target: Member, job: Job, code: int | None, text: str) -> None:
        agent = self.agents[target.node]
        job.attempts, job.ticket = job.attempts + 1, 0
        over = job.attempts > agent.retries
        job.step, job.due = (Step.PASS if over else Step.WAIT), self._home.now + self._pause(target)
        self._host.event(
            "dlm.fence_failed", **self._about(target), attempt=job.attempts, exit=code, said=text, over=over
        )
        self._tell(target, job.attempts, code, text, over)

    def _drop(self, target: Member) -> None:
        """It is not this node's work any more. An agent that ends well before it is killed counts all the same."""
        job = self.jobs.pop(target, None)
        if job is not None and job.step is Step.RUN:
            self._host.kill("dlm", job.ticket)

    def _first_pause(self, target: Member, last: Try) -> int:
        agent, seen = self.agents[target.node], target.incarnation
        if last.given_up or last.attempts:
            return self._pause(target) if self._rounds(target) else 0
        return agent.delay if seen else max(agent.delay, STARTUP_US)

    def _pause(self, target: Member) -> int:
        """Before an attempt that is not the first."""
        rounds = self._rounds(target)
        return min(PAUSE_US << min(rounds - 1, 16), MAX_PAUSE_US) if rounds else RETRY_US

    def _rounds(self, target: Member) -> int:
        """How often all have given up."""
        last = last_try(self._home.table, target)
        return 0 if last is None else last.given_up // max(1, len(self._order.get(target.node, ())))

    # -- messages

    def _tell(self, target: Member, attempts: int, code: int | None, text: str, over: bool) -> None:
        self._home.send(Kind.FENCE_TRIED, (*target, attempts, code, text, over))

    def _clear(self, target: Member, who: str) -> None:
        self._home.send(Kind.CLEARED, (*target, EVERYWHERE, FENCING, who))

    # -- operators

    def acknowledge(self, session: int, rid: int, node: int, who: str) -> int:
        """An operator says that this node is down. Returns how many of its lives wait for that; if there is one,
        the request is answered when all members know.
        """
        targets = [target for target in self._pending() if target.node == node]
        for target in targets:
            self._clear(target, who)
        if targets:
            self._asked.append((session, rid, targets[-1]))
        return len(targets)

    def check(self, session: int, rid: int, node: int) -> bool:
        """Ask the agent for a node how that is: nothing is switched. False: there is no agent."""
        agent = self.agents.get(node)
        if agent is None:
            return False
        self._ticket += 1
        self._checks[self._ticket] = session, rid, node
        stdin = agent.stdin.replace(f"action={agent.action}\n".encode(), b"action=status\n", 1)
        self._host.spawn("dlm", self._ticket, [agent.program], stdin, agent.timeout)
        return True

    def _checked(self, ticket: int, code: int | None, output: bytes) -> None:
        session, rid, node = self._checks.pop(ticket)
        said = gist(self.agents[node], output)
        self._host.reply(session, rid, {"node": node, "exit": code, "said": said})

    def _answer(self, pending: list[Member]) -> None:
        asked, self._asked = self._asked, []
        for session, rid, target in asked:
            if target in pending:
                self._asked.append((session, rid, target))
            else:
                self._host.reply(session, rid, {"node": target.node})

    # -- for people

    def uncovered(self) -> list[str]:
        """The other nodes that this one could not fence, by name."""
        return unfenced_peers(self._config, self.agents)

    def rows(self) -> list[dict[str, Any]]:
        """What has still to be fenced, and how far that is."""
        return [self.row(target) for target in self._pending()]

    def row(self, target: Member) -> dict[str, Any]:
        """Of one life that failed."""
        last, job = last_try(self._home.table, target), self.jobs.get(target)
        actor = actor_of(self._order.get(target.node, ()), last)
        failures = [each for each in self._home.table.failures.every if each.member == target and each.fences]
        return {
            "node": target.node,
            "name": self._config.name(target.node),
            "incarnation": target.incarnation,
            "spaces": sorted({each.space for each in failures}),
            "since_us": self._home.now - min((each.since for each in failures), default=self._home.now),
            "actor": actor,
            "step": job.step.value if job is not None else None,
            "due_us": max(0, job.due - self._home.now) if job is not None and job.step is Step.WAIT else None,
            "attempts": last.attempts if last is not None else 0,
            "given_up": last.given_up if last is not None else 0,
            "exit": last.code if last is not None else None,
            "said": last.text if last is not None else "",
        }

    def words(self, target: Member) -> str:
        """How far it is, for people: behind "waiting for fencing of node 3"."""
        row = self.row(target)
        if row["actor"] is None:
            return f"no member has an agent for node {target.node}"
        text = f"actor node {row['actor']}"
        if row["exit"] is not None:
            text += f"; agent exit {row['exit']}"
        return f"{text}: {row['said']}" if row["said"] else text

    # -- details

    @property
    def _config(self) -> ClusterConfig:
        return self._host.config  # nodes come and go

    def _pending(self) -> list[Member]:
        return self._home.table.failures.unfenced()

    def _about(self, target: Member) -> dict[str, Any]:
        return {"target": self._config.name(target.node), "agent": self.agents[target.node].program}

