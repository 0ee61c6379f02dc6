"""A property that does not hold."""

from __future__ import annotations

__all__ = ["Violation"]


class Violation(AssertionError):
    """``rule`` is the name of the property (EVS-E13, QUO-Q2, ...), ``text`` says what was seen."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(rule, text)
        self.rule = rule
        self.text = text

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"
