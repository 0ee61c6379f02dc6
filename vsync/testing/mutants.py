"""Mutation check: would the simulator notice? Deliberate protocol bugs, many of them corosync's own.

    python -m vsync.testing.mutants                 all of them, until each is caught; 1 if one survives
    python -m vsync.testing.mutants hole release    those whose name contains a word

Each mutant replaces functions of the production engine for as long as its context lasts; the engine itself knows
nothing of it. A mutant is *caught* when a checker raises ``Violation`` – or the core an exception, which is one
(EVS-E28) – in a run that the unbroken engine passes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from vsync import core, counting, quorum, roster, upper
from vsync.core import Core
from vsync.engine import admission, claims, commit, gather, operational, recovery
from vsync.engine.engine import Engine
from vsync.engine.states import State
from vsync.nodes import NodesService
from vsync.testing.hunt import Plugins
from vsync.testing.options import LinkOptions, Options, draw, scaled
from vsync.testing.plugin import no_plugins
from vsync.testing.run import run
from vsync.testing.violation import Violation
from vsync.types import Member, QuorumConfig
from vsync.wire import PacketFlag

__all__ = ["MUTANTS", "Caught", "Mutant", "Replaced", "Stress", "hunt", "main", "options"]

Stress = tuple[tuple[str, Any], ...]

LIMIT = 400  #: seeds that a mutant may survive
NODES = (5, 3, 5, 4, 5, 2, 5, 7)  #: by seed

#: Faults that have to come together for some mutants to do harm: whole options, apart from the seed.
LARGE: Stress = (
    ("timing", scaled(0.2)),
    ("big", 0.3),
    ("packet_bytes", 1400),
    ("crash", 2),
    ("partition", 2),
    ("links", LinkOptions(loss=0.05)),
)
CRASHES: Stress = (
    ("nodes", 4),
    ("timing", scaled(0.2)),
    ("crash", 4),
    ("safe", 0.5),
    ("fault_interval", 100_000),
    ("send_interval", 5_000),
    ("links", LinkOptions(loss=0.1, duplicate=0.5)),
)
LOSSES: Stress = (
    ("nodes", 4),
    ("chaos", 1_000_000),
    ("timing", scaled(0.2)),
    ("partition", 1),
    ("send_interval", 3_000),
    ("links", LinkOptions(loss=0.1)),
)
#: Members restart within milliseconds while their last packets are on a long way, and some reach one survivor only.
LATE: Stress = (
    ("nodes", 3),
    ("timing", scaled(0.2)),
    ("crash", 4),
    ("fast_restart", 1.0),
    ("fault_interval", 60_000),
    ("send_interval", 3_000),
    ("packet_bytes", 100),
    ("links", LinkOptions(delay_low=300, delay_high=900, loss=0.02, reorder=0.5, reorder_delay=20_000)),
)

#: Two nodes that lose sight of each other and die while they write, all the time.
LONERS: Stress = (
    ("nodes", 2),
    ("timing", scaled(0.1)),
    ("chaos", 1_000_000),
    ("send_interval", 100_000),
    ("crash", 2),
    ("partition", 1),
    ("fault_interval", 25_000),
    ("fast_restart", 1.0),
)
#: Many rings that break while they are made, and crashes meanwhile.
ATTEMPTS: Stress = (
    ("nodes", 3),
    ("timing", scaled(0.2)),
    ("crash", 2),
    ("partition", 2),
    ("nested", 8),
    ("fault_interval", 40_000),
    ("fast_restart", 1.0),
    ("links", LinkOptions(loss=0.1, cut_in_flight=True)),
)
LAST_MAN: Stress = (
    *(pair for pair in ATTEMPTS if pair[0] != "nodes"),
    ("nodes", 5),
    ("quorum", QuorumConfig("last_man_standing")),
)
#: The set of nodes changes all the time, too.
NODES_CHANGE: Stress = (
    ("nodes", 4),
    ("timing", scaled(0.2)),
    ("chaos", 3_000_000),
    ("crash", 2),
    ("partition", 3),
    ("nested", 4),
    ("fault_interval", 50_000),
    ("fast_restart", 0.8),
    ("nodes_interval", 60_000),
    ("links", LinkOptions(loss=0.05, cut_in_flight=True)),
)
#: The same with shorter timers, and more often.
NODES_HURRY: Stress = (
    ("nodes", 4),
    ("timing", scaled(0.1)),
    ("chaos", 1_500_000),
    ("crash", 1),
    ("partition", 3),
    ("nested", 2),
    ("fault_interval", 40_000),
    ("fast_restart", 0.8),
    ("nodes_interval", 20_000),
    ("links", LinkOptions(loss=0.05, cut_in_flight=True)),
)
FOREIGN: Stress = (("nodes", 3), ("timing", scaled(0.2)), ("partition", 2), ("foreign", 2))

Replaced = tuple[Any, str, Any]  #: object, name of its attribute, what to put there


@dataclass(frozen=True, slots=True)
class Mutant:
    """One bug. ``origin``: who had it, and where it was mended."""

    name: str
    origin: str
    replacements: tuple[Replaced, ...]
    seed: int = 1  #: one that catches it, tried first
    stress: Stress = ()  #: options of its runs, if it takes a rare combination of faults
    plugins: Plugins = no_plugins  #: who else takes part in its runs, by seed

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Inside, the production engine has this bug."""
        with ExitStack() as stack:
            for target, attribute, function in self.replacements:
                stack.enter_context(patch.object(target, attribute, function))
            yield


@dataclass(frozen=True, slots=True)
class Caught:
    """Where and by what a mutant was noticed."""

    seed: int
    seeds: int  #: how many runs it took
    violation: Violation


def options(seed: int) -> Options:
    """The run of a seed, as in the suite's own selection."""
    return draw(seed, NODES[seed % len(NODES)])


def hunt(mutant: Mutant, seeds: Sequence[int]) -> Caught | None:
    """Run seeds until a checker notices what it does not notice in the unbroken engine; ``None`` if none does.

    Raises ``Violation`` if it does notice something there: a bug of the engine itself.
    """
    for count, seed in enumerate(seeds, 1):
        chosen = Options(seed=seed, **dict(mutant.stress)) if mutant.stress else options(seed)
        with mutant.alive():
            found = run(chosen, mutant.plugins(seed), 1).violation
        if found is not None:
            unbroken = run(chosen, mutant.plugins(seed), 1).violation
            if unbroken is not None:
                raise Violation(unbroken.rule, f"seed {seed}, without a mutant: {unbroken}")
            return Caught(seed, count, found)
    return None


def main(
    argv: Sequence[str] | None = None,
    mutants: Sequence[Mutant] | None = None,
    prog: str = "python -m vsync.testing.mutants",
) -> int:
    """The command, for these mutants (default: those of the ring): 0 if every one was caught."""
    known_ones = MUTANTS if mutants is None else mutants
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="only mutants whose name contains one of these")
    parser.add_argument("--seeds", type=int, default=LIMIT, metavar="N", help=f"at most so many (default {LIMIT})")
    parser.add_argument("--first", type=int, metavar="SEED", help="begin with this seed, not with the known one")
    args = parser.parse_args(argv)
    chosen = [m for m in known_ones if not args.words or any(word in m.name for word in args.words)]
    if not chosen:
        parser.error("no mutant has such a name: " + "; ".join(m.name for m in known_ones))
    survivors = 0
    for mutant in chosen:
        began = time.monotonic()
        known = [mutant.seed] if args.first is None else []
        caught = hunt(mutant, [*known, *range(args.first or 1, args.seeds + (args.first or 1))][: args.seeds])
        survivors += caught is None
        print(_row(mutant, caught, args.seeds, time.monotonic() - began), flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants caught")
    return 1 if survivors else 0


def _row(mutant: Mutant, caught: Caught | None, seeds: int, spent: float) -> str:
    if caught is None:
        verdict = f"SURVIVED {seeds} seeds"
    else:
        verdict = f"{caught.violation.rule:<8} seed {caught.seed:<4} after {caught.seeds:>3} seeds"
    return f"{mutant.name:<58} {mutant.origin:<18} {verdict}, {spent:.1f} s"


# ------------------------------------------------------------ the token


def _duplicate_token_counts(e: Engine, sender: Member, token: Any, now: int) -> None:
    ring = e.active_ring()
    if ring is not None and token.ring == ring.id and token.token_seq == ring.token_seq:
        ring.stable = max(ring.stable, min(token.aru, ring.last_aru, ring.aru))
        ring.release(ring.stable)
    _ON_TOKEN(e, sender, token, now)


def _duplicate_token_accepted(e: Engine, sender: Member, token: Any, now: int) -> None:
    ring = e.active_ring()
    if ring is not None and token.ring == ring.id and token.token_seq == ring.token_seq:
        ring.token_seq -= 1
    _ON_TOKEN(e, sender, token, now)


def _release_early(e: Engine, ring: Any, token: Any, now: int) -> None:
    ring.last_aru = max(ring.last_aru, token.aru)
    _VISIT(e, ring, token, now)


def _anybody_raises_the_aru(e: Engine, ring: Any, token: Any, *rest: Any, **more: Any) -> None:
    token.aru_node = 0
    _FINISH(e, ring, token, *rest, **more)


def _safe_at_once(e: Engine, ring: Any, installing: bool) -> None:
    stable, ring.stable = ring.stable, ring.high
    _DELIVER(e, ring, installing)
    ring.stable = stable


def _window_open(e: Engine, sender: Member, ring_id: Any, packet: Any) -> None:
    if e.state in (State.COMMIT, State.RECOVERY) and e.ring.id == ring_id and packet.origin in e.ring.by_node:
        e.ring.add(packet)
    _ON_DATA(e, sender, ring_id, packet)


# ------------------------------------------------------------ commit and recovery


def _first_token_twice(e: Engine, sender: Member, token: Any, now: int) -> None:
    forming = e.forming
    last = 2 * len(token.members)
    again = forming is not None and token.ring == forming.ring.id and token.hop == forming.hop == last
    if again and e.state is State.RECOVERY and e.me == token.members[0]:
        recovery.start_token(e, now)
    _ON_COMMIT(e, sender, token, now)


def _record_of_installed_ring(e: Engine, token: Any, now: int) -> None:
    _ACCEPT(e, token, now)
    e.record = replace(e.record, ring_seq=e.ring.id.seq)
    e.persist(e.record.encode())


def _ring_sequence_restored(e: Engine, *args: Any, **more: Any) -> None:
    if e.state is State.RECOVERY:
        e.ring_seq = e.highest_ring_seq = e.ring.id.seq
    _ENTER(e, *args, **more)


def _old_ring_saved_again(e: Engine, *args: Any, **more: Any) -> None:
    if e.state is State.RECOVERY and e.forming is not None:
        e.ring.id = e.forming.ring.id
    _ENTER(e, *args, **more)


def _persist_last(e: Engine) -> list[Any]:
    outputs = _TAKE_OUTPUTS(e)
    return sorted(outputs, key=lambda output: type(output).__name__ == "Persist")


def _recovery_ends_early(e: Engine, token: Any) -> bool:
    done = _STEP(e, token)
    return done or (e.forming is not None and e.forming.reached == 1)


def _queues_not_counted(e: Engine, token: Any) -> bool:
    if e.forming is not None and e.forming.install_seq is None:
        e.forming.install_seq = token.seq
    return _STEP(e, token)


def _pieces_forgotten(e: Engine, now: int) -> None:
    e.ring.assembling.clear()
    _BEGIN(e, now)


def _transitional_by_name(e: Engine, now: int) -> None:
    _BEGIN(e, now)
    assert e.forming is not None
    e.forming.transitional = tuple(m for m in e.forming.ring.members if m in e.ring.member_set)


def _nobody_unwelcome(e: Engine, now: int) -> None:
    assert e.forming is not None
    everybody = e.ring.members
    e.forming.entries = {n: replace(x, obliged=everybody) for n, x in e.forming.entries.items()}
    _INSTALL(e, now)


def _half_sent_message_dropped(e: Engine, now: int) -> None:
    e.pieces.clear()
    _INSTALLED(e, now)


def _queue_forgotten(e: Engine, now: int) -> None:
    e.queue.clear()
    _INSTALLED(e, now)


def _nothing_recovered(e: Engine, packet: Any) -> None:
    if not packet.flags & PacketFlag.ENCAPSULATED:
        _ABSORB(e, packet)


# ------------------------------------------------------------ gather


def _fails_itself(e: Engine, sender: Member, join: Any) -> bool:
    learned = _LEARN(e, sender, join)
    if e.me in join.failed:
        e.gathering.failed.add(e.me)
    return learned


def _incarnation_ignored(e: Engine, config: Any, incarnation: int, *args: Any, **more: Any) -> None:
    _INIT(e, config, 1, *args, **more)


# ------------------------------------------------------------ the primary chain


def _own_mark_only(self: Core, configuration: Any, now: int) -> None:
    own = configuration.entries[self.me.node]
    stored = {name: getattr(own, name) for name in ("mark", "lineage", "bases", "says")}

    def verdict(entries: Any) -> quorum.Verdict:
        return quorum.judge({node: replace(entry, **stored) for node, entry in entries.items()})

    with patch.object(core, "judge", verdict), patch.object(upper, "judge", verdict):
        _CORE_INSTALL(self, configuration, now)


def _void_rule_ignored(e: Engine, forming: Any) -> None:
    forming.entries = {node: replace(entry, missed=()) for node, entry in forming.entries.items()}
    _RESOLVE(e, forming)


def _no_doubt(voters: Any, terms: Any, expected: int) -> list[Any]:
    return _ELECTORATES(voters, terms, expected)[:1]


def _everybody_votes(entries: Any) -> list[Any]:
    every = list(entries)
    return every if any(entry.mark.seq for entry in every) else []


def _lineage_ignored(e: Engine, sender: Member, hello: Any, ring_seq: int) -> bool:
    return _ACCEPTABLE(e, sender, replace(hello, lineage=0), ring_seq)


def _marks_of_all_lineages(entries: Any) -> list[Any]:
    return [entry for entry in entries if entry.mark.seq]


# ------------------------------------------------------------ the set of nodes


def _highest_version_counts(entries: Any, named: Any) -> Any:
    best = max((each for names in named.values() for each in names), key=lambda n: (n.roster.version, n.mark))
    return (best.roster, (), "") if best.roster.version else _CHOOSE(entries, named)


def _guess_believed(entries: Any, named: Any) -> Any:
    return _CHOOSE(entries, {node: names[:1] for node, names in named.items()})


def _changed_while_installing(self: Any, origin: Member, position: int, payload: bytes, _: bool, now: int) -> None:
    _NODES_DELIVER(self, origin, position, payload, False, now)


_ON_TOKEN, _VISIT, _FINISH = operational.on_token, operational.visit, operational._depart
_DELIVER, _ON_DATA = operational.deliver, operational.on_data
_ACCEPT = commit._accept
_ON_COMMIT, _STEP, _BEGIN, _INSTALL = commit.on_commit, recovery.step, recovery.begin, recovery.install
_ABSORB, _ENTER, _LEARN = recovery.absorb, gather.enter, gather._learn
_INSTALLED, _INIT, _TAKE_OUTPUTS = Engine.installed, Engine.__init__, Engine.take_outputs
_ELECTORATES = quorum._electorates
_CORE_INSTALL, _RESOLVE, _ACCEPTABLE = Core._install, claims.resolve, admission.acceptable
_CHOOSE, _NODES_DELIVER = counting._choose, NodesService.deliver

MUTANTS = (
    Mutant("a duplicate token counts as a visit", "corosync 79c60fd0", (
        (operational, "on_token", _duplicate_token_counts),), seed=11, stress=CRASHES),
    Mutant("a duplicate token is accepted", "", (
        (operational, "on_token", _duplicate_token_accepted),), seed=2),
    Mutant("the ring's sequence is restored when recovery fails", "corosync 6aa47fde", (
        (gather, "enter", _ring_sequence_restored),), seed=27),
    Mutant("a restarted node loads the id of a ring it was in", "corosync 3675dace", (
        (commit, "_accept", _record_of_installed_ring),), seed=3),
    Mutant("the old ring is saved at every attempt", "corosync ef05817c", (
        (gather, "enter", _old_ring_saved_again),), seed=1),
    Mutant("a duplicate commit token starts the first token again", "corosync 4ee84c51", (
        (commit, "on_commit", _first_token_twice),), seed=4),
    Mutant("recovery ends before everybody is known to have all", "corosync be835fb3", (
        (recovery, "step", _recovery_ends_early),), seed=2),
    Mutant("recovery ends while others still have packets to send", "corosync b4367e60", (
        (recovery, "step", _queues_not_counted),), seed=1, stress=LARGE),
    Mutant("pieces are forgotten before the rest is delivered", "corosync e7a82370", (
        (recovery, "begin", _pieces_forgotten),), seed=1, stress=LARGE),
    Mutant("who is called failed counts itself as failed", "corosync d4db2ea5", (
        (gather, "_learn", _fails_itself),), seed=3),
    Mutant("packets are released one visit early", "", (
        (operational, "visit", _release_early),), seed=6),
    Mutant("anybody may raise the token's aru", "", (
        (operational, "_depart", _anybody_raises_the_aru),), seed=9, stress=LOSSES),
    Mutant("missing packets are not requested", "", (
        (operational, "_request_missing", lambda ring, token: None),), seed=7),
    Mutant("a safe message is delivered at once", "", (
        (operational, "deliver", _safe_at_once),), seed=7),
    Mutant("the old ring's window stays open while committed", "", (
        (operational, "on_data", _window_open),), seed=51, stress=LATE),
    Mutant("the record is written after the token has left", "", (
        (Engine, "take_outputs", _persist_last),), seed=58, stress=LONERS),
    Mutant("recovered packets are not put into the old window", "", (
        (recovery, "absorb", _nothing_recovered),), seed=4),
    Mutant("the transitional view is made of names only", "", (
        (recovery, "begin", _transitional_by_name),), seed=6),
    Mutant("behind a hole everybody's messages are delivered", "", (
        (recovery, "install", _nobody_unwelcome),), seed=7),
    Mutant("a large message that was half sent is dropped", "", (
        (Engine, "installed", _half_sent_message_dropped),), seed=1, stress=LARGE),
    Mutant("what waits for the token is lost at a view change", "", (
        (Engine, "installed", _queue_forgotten),), seed=1),
    Mutant("a restarted node is taken for its former life", "", (
        (Engine, "__init__", _incarnation_ignored),)),
    Mutant("each member judges a view by its own mark", "pitfalls K1", (
        (Core, "_install", _own_mark_only),), seed=18),
    Mutant("an attempt is not stored", "pitfalls K7", (
        (claims, "_newest", lambda attempts, more: attempts),), seed=27, stress=ATTEMPTS),
    Mutant("what was reached is not claimed", "pitfalls K7", (
        (claims, "mine", lambda e: ()),), stress=ATTEMPTS),
    Mutant("who missed an attempt does not make it void", "pitfalls K7", (
        (claims, "resolve", _void_rule_ignored),), seed=3, stress=ATTEMPTS),
    Mutant("the members of a view in doubt are the only electorate", "pitfalls K7, C8", (
        (quorum, "_electorates", _no_doubt),), seed=9, stress=LAST_MAN),
    Mutant("a node without a mark votes", "pitfalls K8", (
        (quorum, "marked", _everybody_votes),), seed=41),
    Mutant("a node of another lineage is taken in", "pitfalls C7", (
        (admission, "acceptable", _lineage_ignored),
        (quorum, "_sure", lambda entry: 0),
        (quorum, "marked", _marks_of_all_lineages)), stress=FOREIGN),
    Mutant("majorities before and after a change need not meet", "pitfalls C8", (
        (roster, "overlap", lambda *_: True),), seed=11, stress=NODES_CHANGE),
    Mutant("the highest version of the nodes counts, not the newest", "pitfalls C8", (
        (counting, "_choose", _highest_version_counts),), seed=56, stress=NODES_HURRY),
    Mutant("what a ring that never came to be would count by counts", "pitfalls C8", (
        (counting, "_choose", _guess_believed),), seed=24, stress=NODES_HURRY),
    Mutant("the nodes change while a view is installed", "pitfalls C8, K3", (
        (NodesService, "deliver", _changed_while_installing),
        (Core, "in_view", lambda self: True)), seed=38, stress=NODES_HURRY),
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
