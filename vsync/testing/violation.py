"""A property that does not hold."""

from __future__ import annotations

__all__ = ["KnownLimit", "Violation"]


class Violation(AssertionError):
    """``rule`` is the name of the property (EVS-E13, QUO-Q2, ...), ``text`` says what was seen."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(rule, text)
        self.rule = rule
        self.text = text

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


class KnownLimit(Violation):
    """The run has come to a situation that this version does not promise to survive (see ``ARCHITECTURE.md``).

    It ends the run, which then says nothing about what would follow; ``--strict`` counts it as broken.
    """
