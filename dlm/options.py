"""What a lockspace wants beyond the rules of all: when grants are answered, and what comes first after a failure.

Options are part of the replicated registry (``dlm.spaces``), so that all members hold the same answers back. They
are given when a lockspace is made, or changed by an ordered message. What nobody gave, and all of ``default``, is
from ``[dlm.lockspace.NAME]`` of the configuration: of the node that makes the lockspace, and for ``default`` of the
lowest member when a table begins empty (docs/lockspaces.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from dlm.arguments import MAX_NAME, BadArgument
from vsync.section import Section
from vsync.types import ClusterConfig

__all__ = [
    "ANSWERS", "DELAY", "FENCING", "MAX_DELAY_MS", "PLAIN", "RECOVERY", "SECTION", "Changes", "Configured",
    "Options", "given", "words",
]  # fmt: skip

FENCING, RECOVERY, DELAY = 1, 2, 4  #: what may have to come after a failure, as bits
ANSWERS = ("delivery", "stable")
MAX_DELAY_MS = 3_600_000
SECTION = "dlm"  #: of the configuration

Changes = tuple[bool | None, int | None, bool | None, bool | None]  #: of ``Options``; ``None``: as it is


class Options(NamedTuple):
    """Of one lockspace; msgpack takes it."""

    stable: bool = False  #: a grant is answered when all members have what decided it, not before
    lock_delay_ms: int = 0  #: so long nobody else is told of a grant of what a failed node had
    fencing: bool = False  #: .. nor before that node is fenced ..
    recovery: bool = False  #: .. nor before an application has said that it has recovered from its failure

    @property
    def needs(self) -> int:
        """What has to come after a failure, as bits."""
        return FENCING * self.fencing | RECOVERY * self.recovery | DELAY * bool(self.lock_delay_ms)

    @property
    def settles(self) -> bool:
        """Whether grants wait until all members have what decided them.

        So it is with whatever waits for what a failed node had, too: a grant that only that node knew of could not
        be waited for.
        """
        return self.stable or bool(self.needs)

    def changed(self, changes: Iterable[Any]) -> Options:
        """With what is not ``None`` in ``changes``."""
        said = ("stable", "lock_delay_ms", "fencing", "recovery")
        return self._replace(**{key: new for key, new in zip(said, changes, strict=True) if new is not None})

    def row(self) -> dict[str, Any]:
        """For people and clients."""
        return {
            "answer": ANSWERS[self.settles],
            "lock_delay_ms": self.lock_delay_ms,
            "fencing": self.fencing,
            "recovery": self.recovery,
        }


PLAIN = Options()


def words(needs: int) -> str:
    """These bits for people."""
    named = ((FENCING, "fencing"), (RECOVERY, "recovery"), (DELAY, "lock_delay"))
    return ", ".join(word for bit, word in named if needs & bit)


def given(args: Mapping[str, Any]) -> Changes:
    """The options in a request, as changes. Raises ``BadArgument``."""
    answer, delay = args.get("answer"), args.get("lock_delay_ms")
    if answer is not None and answer not in ANSWERS:
        raise BadArgument(f"answer must be one of {', '.join(ANSWERS)}")
    if delay is not None and (type(delay) is not int or not 0 <= delay <= MAX_DELAY_MS):
        raise BadArgument(f"lock_delay_ms must be 0 .. {MAX_DELAY_MS}")
    switches = [args.get(key) for key in ("fencing", "recovery")]
    if any(switch is not None and type(switch) is not bool for switch in switches):
        raise BadArgument("fencing and recovery must be true or false")
    return None if answer is None else answer == "stable", delay, switches[0], switches[1]


class Configured:
    """What the configuration says about lockspaces. Raises ``ConfigError`` that names the key."""

    def __init__(self, config: ClusterConfig) -> None:
        section = Section("", SECTION, config.sections.get(SECTION, {}))
        self._by_name: dict[str, Options] = {}
        spaces = section.table("lockspace")
        for name, table in spaces.named():
            if not 1 <= len(name.encode()) <= MAX_NAME or "\0" in name:
                spaces.fail(name, f"a lockspace's name has 1..{MAX_NAME} bytes")
            self._by_name[name] = _read(table)
        section.know("fencing")  # dlm.stonith reads it
        section.end()

    def options(self, space: str) -> Options:
        """What a lockspace has unless somebody says otherwise."""
        return self._by_name.get(space, PLAIN)


def _read(table: Section) -> Options:
    answer = table.choice("answer", ANSWERS, ANSWERS[0])
    delay = table.integer("lock_delay_ms", 0, MAX_DELAY_MS, default=0)
    options = Options(answer == "stable", delay, table.yes_or_no("fencing"), table.yes_or_no("recovery"))
    table.end()
    return options
