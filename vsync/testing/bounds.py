"""Bounds in virtual time and in space: EVS-E12, E25..E28. ``docs/simulator.md`` says how close runs come to them.

A *hop* is the longest delay of a link, a *rotation* one hop for each member. Nothing is lost any more.

=======  ======================================================================================================
E12      at the end no living process stands before a configuration that others installed with it as a member
E25      in one ring a message is delivered everywhere
         - within ``idle``, if the ring has been idle: a CANCEL, the token's way to the sender, the message's way
         - within ``idle_safe``, if it is SAFE: two rotations more until all know that all have it, and a third if
           the token overtook the message somewhere
         - within ``delivery``, in a ring in which things were lost until now: the token is sent again after
           ``token_retransmit``, and once more, since a slow receiver goes on dropping what its buffer does not hold
           until that is empty; then its way to the sender, and two rotations for packets to be requested and sent
E26      after the last fault: one ring of all within ``convergence``
         - a change that began before it may fail once more (token, consensus) and leave out who is alive
         - who is left out is tried again after MAX_BACKOFF token timeouts at most, and found by the next probe
         - the change that takes it in may find its own ring lost (token and consensus once more)
         - each of the two changes takes eight rotations: JOINs, the commit token's two, five of recovery
E27      on the way there: at most ``views`` regular views at any node – the change that was under way, and for each
         other node one in which it comes back and one in which it is left out again. In chaos: ``liveness_rules``
E28      the packets a node holds, its send queue and the pieces of large messages stay below fixed numbers
=======  ======================================================================================================
"""

from __future__ import annotations

from typing import Any

from vsync.engine.merging import MAX_BACKOFF
from vsync.engine.operational import MAX_OUTSTANDING
from vsync.testing.evs_views import ViewRules
from vsync.testing.liveness_rules import views_to_merge
from vsync.testing.options import Options
from vsync.testing.violation import Violation
from vsync.types import MAX_MESSAGE

__all__ = ["check_buffers", "check_installed", "convergence", "delivery", "idle", "idle_safe", "views"]

SPARE = 8  #: urgent messages of the layers above, beyond the send queue


def convergence(options: Options) -> int:
    """E26, in µs."""
    timing, rotation = options.timing, _hops(options, options.nodes)
    change = timing.token + timing.consensus + 8 * rotation
    return MAX_BACKOFF * timing.token + 2 * timing.merge + 2 * change


def views(options: Options) -> int:
    """E27, a number."""
    return views_to_merge(options.nodes)


def delivery(options: Options) -> int:
    """E25 in a ring that has just become calm, in µs."""
    return 2 * options.timing.token_retransmit + _hops(options, 3 * options.nodes + 2)


def idle(options: Options) -> int:
    """E25 in an idle ring, in µs."""
    return _hops(options, options.nodes + 2)


def idle_safe(options: Options) -> int:
    """E25 for a SAFE message in an idle ring, in µs."""
    return _hops(options, 4 * options.nodes + 2)


def _hops(options: Options, count: int) -> int:
    return count * options.links.delay_high


def check_installed(views: ViewRules) -> None:
    """E12, when all is calm."""
    for ring, configuration in views.configurations.items():
        for member in configuration.members if configuration.came_from else ():
            process = views.processes.get(member)
            if process is None or member in configuration.came_from:
                continue
            if process.regular is None or process.regular.id < ring:
                raise Violation("EVS-E12", f"node {member.node} neither installed {ring} nor anything later")


def check_buffers(node: int, core: Any) -> None:
    """E28. A core without an engine has no buffers."""
    engine = getattr(core, "engine", None)
    if engine is None:
        return
    rings = [engine.ring, *([engine.forming.ring] if engine.forming is not None else [])]
    pieces = MAX_MESSAGE // engine.config.packet_bytes + 1
    sizes = [
        ("packets of a ring", max(len(ring.packets) for ring in rings), 3 * MAX_OUTSTANDING),
        ("messages in the send queue", len(engine.queue), engine.config.send_queue + SPARE),
        ("pieces being sent", len(engine.pieces), pieces),
        ("pieces put together", max((len(p) for r in rings for p in r.assembling.values()), default=0), pieces),
    ]
    for what, size, limit in sizes:
        if size > limit:
            raise Violation("EVS-E28", f"node {node} holds {size} {what}, more than {limit}")
