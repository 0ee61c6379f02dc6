"""The names that the clients of a storm lock."""

from __future__ import annotations

__all__ = ["OWN_NAMES", "all_names", "hot_name", "is_kept", "kept_name", "own_name"]

OWN_NAMES = 4


def hot_name(number: int) -> str:
    """Everybody wants it."""
    return f"hot{number}"


def kept_name(number: int) -> str:
    """Locks on it are kept for seconds."""
    return f"kept{number}"


def is_kept(name: str) -> bool:
    """Whether it is one of those."""
    return name.startswith("kept")


def own_name(index: int, number: int) -> str:
    """Only client ``index`` uses it, so it becomes private to that one's node."""
    return f"own{index}-{number}"


def all_names(hot: int, kept: int, clients: int) -> list[str]:
    """All of them."""
    owned = [own_name(index, number) for index in range(clients) for number in range(OWN_NAMES)]
    return [*map(hot_name, range(hot)), *map(kept_name, range(kept)), *owned]
