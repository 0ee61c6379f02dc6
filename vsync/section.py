"""One table of a configuration, read key by key: checked values out, or a ``ConfigError`` that names the key.

The tables of ``vsync.config`` come from a file, which the errors name. Those of services come from
``ClusterConfig.sections``; there the errors say ``[dlm.lockspace.default] answer: …``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, NoReturn, Self

from vsync.errors import ConfigError

__all__ = ["Section", "meant"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def meant(text: str, known: list[str]) -> str:
    """``; did you mean 'x'?`` if one of ``known`` is near ``text``, else nothing."""
    near = difflib.get_close_matches(text, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


class Section:
    """Hands out checked values and remembers which keys were asked for. Every method raises ``ConfigError``."""

    def __init__(self, file: str, path: str, values: Mapping[str, Any]) -> None:
        self.file = file  #: empty: nobody knows
        self.path = path
        self.values = dict(values)
        self.known: list[str] = []  #: keys that were asked for

    def fail(self, key: str, text: str) -> NoReturn:
        """Raises ``ConfigError`` for ``key`` of this table."""
        if self.file:
            raise ConfigError(f"{self.file}: {'.'.join(p for p in (self.path, key) if p)}: {text}")
        raise ConfigError(f"[{self.path}] {key}: {text}" if key else f"[{self.path}]: {text}")

    def end(self) -> None:
        """Raises ``ConfigError`` if there are keys nobody asked for."""
        for key in self.values:
            if key not in self.known:
                known = self.known
                remedy = meant(key, known) or f"; known here: {', '.join(sorted(known))}"
                self.fail(key, f"unknown key{remedy}")

    def table(self, key: str, *, required: bool = False) -> Self:
        """The sub-table ``key``; empty if it is absent and not required."""
        value = self._get(key, dict, "a table", None if required else {})
        return self._at(f"{self.path}.{key}" if self.path else key, value)

    def tables(self, key: str) -> list[Self]:
        """The array of tables ``key``."""
        values = self._get(key, list, f"an array of tables, written as [[{key}]]", [])
        if not all(isinstance(v, dict) for v in values):
            self.fail(key, f"must be an array of tables, written as [[{key}]]")
        return [self._at(f"{key}[{i}]", v) for i, v in enumerate(values, 1)]

    def named(self) -> list[tuple[str, Self]]:
        """Every key of a table whose keys are names that the user chose; each value must be a table."""
        return [(key, self.table(key)) for key in self.values]

    def text(self, key: str, default: str | None = None) -> str:
        """A string that is not empty (unless that is the default)."""
        value: str = self._get(key, str, "a string in quotes", default)
        if not value and default is None:
            self.fail(key, "must not be empty")
        return value

    def know(self, *keys: str) -> None:
        """These keys may be there, too."""
        self.known += keys

    def name(self, key: str) -> str:
        """A name that is safe in paths, logs and tables."""
        value = self.text(key)
        if not _NAME.fullmatch(value):
            self.fail(key, f"{value!r} is not a name: up to 63 letters, digits and . _ - are allowed")
        return value

    def choice(self, key: str, allowed: tuple[str, ...], default: str) -> str:
        """One of a few words."""
        value = self.text(key, default)
        if value not in allowed:
            self.fail(key, f"{value!r} is not one of {', '.join(allowed)}{meant(value, list(allowed))}")
        return value

    def yes_or_no(self, key: str) -> bool:
        """true or false; false if absent."""
        self.known.append(key)
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            self.fail(key, f"must be true or false, not {value!r}")
        return value

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number in a range."""
        value: int = self._get(key, int, "a whole number", default)
        if key in self.values and not low <= value <= high:
            self.fail(key, f"{value} is not between {low} and {high}")
        return value

    def number(self, key: str, low: float, high: float, default: float, wanted: str = "milliseconds") -> float:
        """A number in a range; ``wanted`` is its unit, for people."""
        value: float = self._get(key, (int, float), f"a number ({wanted})", default)
        if not low <= value <= high:
            self.fail(key, f"{value} is not between {low} and {high}")
        return value

    def _at(self, path: str, values: Mapping[str, Any]) -> Self:
        return type(self)(self.file, path, values)

    def _get(self, key: str, kind: type | tuple[type, ...], wanted: str, default: Any) -> Any:
        self.known.append(key)
        if key not in self.values:
            if default is None:
                self.fail(key, f"is missing; it must be {wanted}")
            return default
        value = self.values[key]
        # bool is an int to Python, but `votes = true` is a mistake.
        if not isinstance(value, kind) or isinstance(value, bool):
            self.fail(key, f"must be {wanted}, not {value!r}")
        return value
