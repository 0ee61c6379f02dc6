"""How many locks each node has on one name: a mapping, the same one for all names with one lock of a node."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from types import MappingProxyType

from dlm.lock import Key

__all__ = ["NOBODY", "Homes", "came", "went"]

Homes = Mapping[int, int]
NOBODY: Homes = MappingProxyType({})


@cache
def _alone(node: int) -> Homes:
    return MappingProxyType({node: 1})


def came(homes: Homes, locks: Collection[Key], node: int) -> Homes:
    """There is one lock of this node more; ``locks`` are all there are now."""
    if len(locks) == 1:
        return _alone(node)
    own = homes if isinstance(homes, dict) else dict(homes)
    own[node] = own.get(node, 0) + 1
    return own


def went(homes: Homes, locks: Collection[Key], node: int) -> Homes:
    """There is one less; ``locks`` are those that are left."""
    if not locks:
        return NOBODY
    if len(locks) == 1 or not isinstance(homes, dict):
        return _alone(next(iter(locks))[0])
    homes[node] -= 1
    if not homes[node]:
        del homes[node]
    return homes
