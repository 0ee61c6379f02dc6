"""How many locks each node has on one name: a mapping, the same one for all names with one lock of a node."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from types import MappingProxyType

from dlm.lock import Key

__all__ = ["NOBODY", "Homes", "alone", "came", "went"]

Homes = Mapping[int, int]
NOBODY: Homes = MappingProxyType({})


@cache
def alone(node: int) -> Homes:
    """There is one lock, of this node."""
    return MappingProxyType({node: 1})


def came(homes: Homes, node: int) -> Homes:
    """There is one lock of this node more, and not the first one."""
    own = homes if isinstance(homes, dict) else dict(homes)
    own[node] = own.get(node, 0) + 1
    return own


def went(homes: Homes, locks: Collection[Key], node: int) -> Homes:
    """There is one less, and not the last one; ``locks`` are those that are left."""
    if len(locks) == 1 or not isinstance(homes, dict):
        return alone(next(iter(locks))[0])
    homes[node] -= 1
    if not homes[node]:
        del homes[node]
    return homes
