"""The complete state of an engine as plain data, and an engine made of it again.

For the flight recorder: what happened is replayed from the last checkpoint on, not from the node's start. Taking a
checkpoint (``capture``) copies containers and shares what never changes – packets, messages, members – so that it
costs little even with a full window. ``encode`` and ``decode`` turn it into what msgpack can carry and back: only
the engine's own classes, by name; nothing in a file can make ``decode`` run anything.

What is in an engine is found by looking, not from a list: an attribute that is forgotten here cannot exist. One
of a type that is not known raises ``TypeError`` (a test captures engines in every state).
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import is_dataclass, replace
from enum import Enum
from types import ModuleType
from typing import Any

from vsync import roster, types, wire, wire_forming
from vsync.engine import change, commit, gather, outputs, record, ring, states, timers
from vsync.engine.engine import Engine

__all__ = ["GIVEN", "capture", "decode", "encode", "held_bytes", "restore"]

#: Attributes that whoever restores an engine brings along: not its state.
GIVEN = frozenset({"config", "timing", "upper", "decode_upper", "recorder"})

_MODULES: tuple[ModuleType, ...] = (
    *(types, roster, wire, wire_forming, change, commit, gather, outputs, record, ring, states, timers),
)
_CLASSES: dict[str, type] = {
    name: cls
    for module in _MODULES
    for name, cls in sorted(vars(module).items())
    if isinstance(cls, type) and cls.__module__ == module.__name__
}
_PLAIN = frozenset({type(None), bool, int, float, str, bytes})


def _never_changes(cls: type) -> bool:
    frozen = is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    return frozen or issubclass(cls, (Enum, tuple))


#: Shared by a checkpoint and the living engine. Nobody changes a packet once it is made.
_SHARED = _PLAIN | {tuple, frozenset, wire.Packet} | {cls for cls in _CLASSES.values() if _never_changes(cls)}


def capture(engine: Engine) -> dict[str, Any]:
    """The engine's state, independent of what becomes of the engine. Raises ``TypeError`` for an unknown type."""
    return {name: _copy(value) for name, value in sorted(vars(engine).items()) if name not in GIVEN}


def restore(state: dict[str, Any], config: types.ClusterConfig, upper: Any, decode_upper: Any) -> Engine:
    """A living engine in that state; ``state`` is used up. ``upper`` and ``decode_upper``: see ``Engine``."""
    engine = Engine.__new__(Engine)
    vars(engine).update(state)
    engine.config, engine.timing = replace(config, peers=engine.contacts), config.timing
    engine.upper, engine.decode_upper = upper, decode_upper
    return engine


def held_bytes(engine: Engine) -> int:
    """How many bytes of messages a checkpoint of this engine would keep from being freed."""
    rings = [engine.ring] + ([engine.forming.ring] if engine.forming else [])
    packets = sum(len(p.body) for r in rings for p in r.packets.values())
    return packets + sum(len(message) for _, message in engine.queue) + len(engine.whole[1])


def _copy(value: Any) -> Any:
    cls = type(value)
    if cls in _SHARED:
        return value
    if cls in (list, deque, set):
        return cls([_copy(v) for v in value])
    if cls in (dict, Counter):
        return cls({k: _copy(v) for k, v in value.items()})
    copied = _blank(cls)
    for name, inner in _attributes(value):
        setattr(copied, name, _copy(inner))
    return copied


def _blank(cls: type[Any]) -> Any:
    _known(cls)
    return object.__new__(cls)


def _attributes(value: Any) -> list[tuple[str, Any]]:
    names = getattr(type(value), "__slots__", None) or vars(value)
    return [(name, getattr(value, name)) for name in names]


# ---------------------------------------------------------------- to plain data and back

_CONTAINERS: dict[type, str] = {list: "l", tuple: "t", deque: "q", set: "s", frozenset: "f"}
_BY_TAG: dict[str, type] = {tag: cls for cls, tag in _CONTAINERS.items()}
_MAPPINGS: dict[str, type] = {"d": dict, "c": Counter}


def encode(value: Any) -> Any:
    """As msgpack can carry it; equal states give equal results. Raises ``TypeError`` for an unknown type."""
    cls = type(value)
    if cls in _PLAIN:
        return value
    if cls in _CONTAINERS:
        ordered = sorted(value) if cls in (set, frozenset) else value
        return [_CONTAINERS[cls], [encode(v) for v in ordered]]
    if cls in (dict, Counter):
        tag = "d" if cls is dict else "c"
        return [tag, [[encode(k), encode(v)] for k, v in value.items()]]
    if isinstance(value, Enum):
        return ["e", _known(cls), value.name]
    if isinstance(value, tuple):
        return ["n", _known(cls), [encode(v) for v in value]]
    return ["o", _known(cls), [[name, encode(inner)] for name, inner in _attributes(value)]]


def _known(cls: type) -> str:
    if _CLASSES.get(cls.__name__) is not cls:
        raise TypeError(f"a checkpoint cannot hold a {cls.__module__}.{cls.__qualname__}")
    return cls.__name__


def decode(raw: Any) -> Any:
    """The reverse of ``encode``. Raises ``ValueError`` for what this release does not know."""
    match raw:
        case None | bool() | int() | float() | str() | bytes():
            return raw
        case [str(tag), list(items)] if tag in _BY_TAG:
            return _BY_TAG[tag]([decode(v) for v in items])
        case [str(tag), list(items)] if tag in _MAPPINGS:
            return _MAPPINGS[tag]({decode(k): decode(v) for k, v in items})
        case ["e", str(name), str(member)]:
            return _class(name, Enum)[member]
        case ["n", str(name), list(items)]:
            return _class(name, tuple)(*(decode(v) for v in items))
        case ["o", str(name), list(items)]:
            return _object(_class(name, object), items)
    raise ValueError(f"a checkpoint has an unknown form: {str(raw)[:80]}")


def _object(cls: Any, items: list[Any]) -> Any:
    made = cls.__new__(cls)
    for name, inner in items:
        if not isinstance(name, str) or name.startswith("__"):
            raise ValueError(f"a checkpoint has an unknown form: attribute {name!r}")
        object.__setattr__(made, name, decode(inner))
    return made


def _class(name: str, base: type) -> Any:
    cls = _CLASSES.get(name)
    if cls is None or not issubclass(cls, base):
        raise ValueError(f"a checkpoint has a {name}, which this release does not know")
    return cls
