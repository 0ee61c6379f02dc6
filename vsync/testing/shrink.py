"""Make a failing run smaller, for as long as it goes on to break the same rule.

Each step leaves something out – a kind of fault, a node, half of the time – and tries a few seeds, as every change
also changes the course of all that follows. What is left is a short story and the options that replay it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from vsync.testing.options import Options, scaled
from vsync.testing.plugin import Plugin
from vsync.testing.run import Result, run
from vsync.types import QuorumConfig

__all__ = ["parse", "shrink", "spell"]

TRIES = 6  #: seeds for each step
_OFF = (
    *("herd", "slow", "nested", "rumour", "mtu", "one_way", "pause", "leave", "partition", "crash", "lost_disk"),
    *("frozen", "evidence", "group_interval", "big", "safe", "chat", "accelerated", "drift_ppm", "start_spread"),
    *("fast_restart", "bootstrap", "foreign", "nodes_interval"),
)
_LINGER = "timing.linger"  #: the one timer that is drawn by itself
_NESTED = ("links", "quorum")  #: options that have fields of their own
_LINKS = ("loss", "duplicate", "reorder", "cut_in_flight")


def shrink(
    options: Options, plugins: Callable[[int], Sequence[Plugin]], seconds: float, told: Callable[[str], None]
) -> Result:
    """The smallest run found in ``seconds`` of real time that breaks the same rule; tells of each step."""
    best = run(options, plugins(options.seed))
    if best.violation is None:
        return best
    rule, until = best.violation.rule, time.monotonic() + seconds
    progress = True
    while progress and time.monotonic() < until:
        progress = False
        for what, smaller in _steps(best):
            found = _find(smaller, plugins, rule, until)
            if found is not None:
                told(f"{what}: still {rule}, {found.events} events")
                best, progress = found, True
                break
    return best


def _find(
    options: Options, plugins: Callable[[int], Sequence[Plugin]], rule: str, until: float
) -> Result | None:
    for offset in range(TRIES):
        if time.monotonic() > until:
            return None
        seed = options.seed + offset
        result = run(replace(options, seed=seed), plugins(seed))
        if result.violation is not None and result.violation.rule == rule:
            return result
    return None


def _steps(result: Result) -> Iterator[tuple[str, Options]]:
    """Smaller runs, the most promising first."""
    o = result.options
    if result.virtual < o.chaos:
        yield "shorter", replace(o, chaos=result.virtual)
    if o.chaos > 200_000:
        yield "half the time", replace(o, chaos=o.chaos // 2)
    if o.nodes > 2:
        yield "one node less", replace(o, nodes=o.nodes - 1, votes=o.votes[:-1])
    if o.votes != (1,) * len(o.votes):
        yield "a vote each", replace(o, votes=())
    for name in ("policy", "wait_for_all", "auto_tie_breaker"):
        if getattr(o.quorum, name) != getattr(QuorumConfig(), name):
            usual = replace(o.quorum, **{name: getattr(QuorumConfig(), name)})
            yield f"{name} as usual", replace(o, quorum=usual)
    for name in _OFF:
        if getattr(o, name):
            yield f"no {name}", replace(o, **{name: type(getattr(o, name))(0)})
    for name in _LINKS:
        if getattr(o.links, name):
            yield f"no {name}", replace(o, links=replace(o.links, **{name: type(getattr(o.links, name))(0)}))
    if o.send_interval < o.chaos:
        yield "half the messages", replace(o, send_interval=o.send_interval * 2)
    if o.fault_interval < o.chaos:
        yield "half the faults", replace(o, fault_interval=o.fault_interval * 2)


# ---------------------------------------------------------------- options as text


def spell(options: Options) -> str:
    """What differs from the defaults, as ``parse`` reads it: ``seed=7,nodes=3,timing=0.2,links.loss=0.1``."""
    plain, parts = Options(), []
    for field in fields(Options):
        value, usual = getattr(options, field.name), getattr(plain, field.name)
        if field.name == "timing":
            factor = value.token / usual.token
            parts += [f"timing={factor:g}"] if factor != 1 else []
            parts += [f"{_LINGER}={value.linger}"] if value.linger != scaled(factor).linger else []
        elif field.name in _NESTED:
            changed = asdict(value).items() - asdict(usual).items()
            parts += [f"{field.name}.{name}={_text(v)}" for name, v in sorted(changed)]
        elif value != usual or field.name in ("seed", "nodes"):
            parts.append(f"{field.name}={_text(value)}")
    return ",".join(parts)


def parse(text: str) -> Options:
    """Options from their spelling. Raises ``ValueError`` for what is no option."""
    plain = Options()
    found: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {name: {} for name in _NESTED}
    lingers: int | None = None
    for part in text.split(","):
        name, _, value = part.partition("=")
        whole, _, inner = name.partition(".")
        if name == "timing":
            found["timing"] = scaled(float(value))
        elif name == _LINGER:
            lingers = int(value)
        elif whole in _NESTED and hasattr(getattr(plain, whole), inner):
            nested[whole][inner] = _value(getattr(getattr(plain, whole), inner), value)
        elif hasattr(plain, name) and name not in _NESTED:
            found[name] = _value(getattr(plain, name), value)
        else:
            raise ValueError(f"{name!r} is no option of a run")
    if lingers is not None:
        found["timing"] = replace(found.get("timing", plain.timing), linger=lingers)
    found.update({name: replace(getattr(plain, name), **given) for name, given in nested.items()})
    return replace(plain, **found)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    if isinstance(value, str):
        return value
    return str(int(value)) if isinstance(value, bool) else repr(value)


def _value(like: Any, text: str) -> Any:
    if isinstance(like, tuple):
        return tuple(map(int, text.split("+")))
    return bool(int(text)) if isinstance(like, bool) else type(like)(text)
