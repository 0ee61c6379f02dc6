"""Bounds in virtual time and in space: EVS-E12, E25..E28.

=======  ======================================================================================================
E12      at the end no living process stands before a configuration that others installed with it as a member
E25      in one ring, with nothing lost: a message is delivered everywhere within ``delivery`` – eight rotations of
         the token, a hold of an idle ring, and two retransmissions of a token that was under way when faults ended
E26      after the last fault: one ring of all within ``convergence`` – the longest back-off of a node that could
         not be taken in (MAX_BACKOFF token timeouts), then three times token + consensus + merge
E27      on the way there: at most ``VIEWS`` regular views at any node (in chaos: ``liveness_rules``)
E28      the packets a node holds, its send queue and the pieces of large messages stay below fixed numbers
=======  ======================================================================================================
"""

from __future__ import annotations

from typing import Any

from vsync.engine.engine import MAX_BACKOFF
from vsync.engine.operational import MAX_OUTSTANDING
from vsync.testing.evs_views import ViewRules
from vsync.testing.options import Options
from vsync.testing.violation import Violation
from vsync.types import MAX_MESSAGE, Timing

__all__ = ["VIEWS", "check_buffers", "check_installed", "convergence", "delivery"]

VIEWS = 15  #: regular views of one node between the last fault and the ring of all
SPARE = 8  #: urgent messages of the layers above, beyond the send queue


def convergence(timing: Timing) -> int:
    """E26, in µs."""
    return MAX_BACKOFF * timing.token + 3 * (timing.token + timing.consensus + timing.merge)


def delivery(options: Options) -> int:
    """E25, in µs."""
    rotation = options.nodes * options.links.delay_high
    return 8 * rotation + options.timing.hold + 2 * options.timing.token_retransmit


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
