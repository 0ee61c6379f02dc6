"""Why and how fast a view changes: what an operator asks first."""

from __future__ import annotations

from typing import Any

from vsync.engine.states import Reason, State

__all__ = ["Change"]

_FOLLOWS = {Reason.NO_CONSENSUS, Reason.SILENT}  #: what comes of a change, not why it began


class Change:
    """One way from a ring to the next: reasons in order, who was failed by what, how long each phase took."""

    __slots__ = ("_began", "_failed", "_gathers", "_reasons", "_silence", "_since", "_spent", "_state")

    def __init__(self) -> None:
        self._reasons: list[str] = []
        self._failed: dict[int, str] = {}
        self._spent: dict[State, int] = {}
        self._state: State | None = None
        self._began = self._since = 0
        self._silence: int | None = None
        self._gathers = 0

    def enter(
        self, state: State, reason: Reason | None, details: dict[str, Any], last_token: int, now: int
    ) -> None:
        """The engine enters a state on its way."""
        if self._state is None:
            self._began = now
            self._silence = now - last_token if last_token else None
        else:
            self._spent[self._state] = self._spent.get(self._state, 0) + now - self._since
        self._state, self._since = state, now
        self._gathers += state is State.GATHER
        if reason is not None:
            self._explain(reason, details)

    def reason(self) -> str:
        """For people, in one line."""
        return "; ".join(self._reasons) or "formed"

    @property
    def attempts(self) -> int:
        """How often Gather was entered on this way."""
        return self._gathers

    def first(self) -> str:
        """What began it, for those who are asked to take part."""
        return self._reasons[0] if self._reasons else ""

    def report(self, view: str) -> dict[str, Any]:
        """For status and log: all times in µs. ``silence_us``: since the last token when the ring was given up."""
        return {
            "view": view,
            "reason": self.reason(),
            "failed": {str(node): why for node, why in sorted(self._failed.items())},
            "silence_us": self._silence,
            "gather_us": self._spent.get(State.GATHER, 0),
            "commit_us": self._spent.get(State.COMMIT, 0),
            "recovery_us": self._spent.get(State.RECOVERY, 0),
            "total_us": self._since - self._began,
            "attempts": self._gathers,
        }

    def _explain(self, reason: Reason, details: dict[str, Any]) -> None:
        for node in details.get("failed", ()):
            self._failed.setdefault(node, reason.value)
        if reason in _FOLLOWS:
            return
        text = f"{reason.value} (node {details['node']})" if "node" in details else reason.value
        if details.get("evidence"):
            text += f": {details['evidence']}"
        if reason is Reason.JOIN and self._reasons:
            return  # answering each other's JOINs explains nothing
        if text not in self._reasons:
            self._reasons.append(text)
