"""The registers that the locks of a storm guard: a ``dlm.FencedResource`` for each name, in files of one folder."""

from __future__ import annotations

from pathlib import Path

from dlm.fenced import FencedResource

__all__ = ["Registers", "from_data", "to_data"]


class Registers(dict[str, FencedResource]):
    """By name; those that were not used before are made."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder / "registers"
        self._folder.mkdir(exist_ok=True)

    def __missing__(self, name: str) -> FencedResource:
        register = self[name] = FencedResource(self._folder / name)
        return register


def to_data(value: int) -> bytes:
    """A number as the data of a register."""
    return b"%d" % value


def from_data(data: bytes) -> int:
    """The reverse; 0 for what nobody has written yet."""
    return int(data or b"0")
