"""Measuring ourselves and others in turn, so that what disturbs the machine disturbs all alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vsync.bench.rows import Sample, middle

__all__ = ["Measure", "contest"]

Measure = Callable[[], Sample]


def contest(
    entrants: Mapping[str, Measure], rounds: int, tell: Callable[[str], None] = lambda text: None
) -> dict[str, Sample]:
    """Let everybody measure once in each of ``rounds`` rounds; the medians. The first comes second in every other
    round: whoever follows a heavy one must not always be the same.
    """
    found: dict[str, list[Sample]] = {name: [] for name in entrants}
    for number in range(rounds):
        order = list(entrants) if number % 2 == 0 else list(entrants)[::-1]
        for name in order:
            tell(f"{name}, {number + 1} of {rounds}")
            found[name].append(entrants[name]())
    return {name: middle(samples) for name, samples in found.items()}
