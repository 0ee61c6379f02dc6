"""When what was withheld is looked at again: at tokens, at the horizon, with a new lease, at views.

Each of these costs nothing if nothing waits for it.
"""

from __future__ import annotations

from dlm.home import Home

__all__ = ["Prompter"]


class Prompter:
    """A part of the service of one node."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._swept = 0  #: when the withheld answers were last looked at ..
        self._had_lease = False  #: .. and whether there was a lease then

    @property
    def waiting(self) -> bool:
        """Whether something is to be told at the horizon."""
        home = self._home
        if not home.open or home.holding or self._swept >= home.lease.horizon:
            return False
        return bool(home.teller.backlog.soon or home.table.failures)

    def view(self) -> None:
        """A view is installed, and what it does to locks is known: all is looked at."""
        self._home.holding = self._had_lease = False
        self._home.teller.tell_deferred()
        self._home.gate.tell_deferred()

    def token(self, stable: int, now: int) -> None:
        """A token was accepted: all members have what stands at positions of the ring below ``stable``."""
        home = self._home
        if home.settled.token(stable):
            home.table.history.settled(home.settled.applied)
            home.teller.tell_settled()
        self.sweep(now)

    def sweep(self, now: int) -> None:
        """Give the answers that time, or a new lease, has made possible."""
        home, lease = self._home, self._home.lease
        had_lease, self._had_lease = self._had_lease, lease.valid(now)
        self._swept = now
        if now >= lease.horizon:
            home.table.failures.lately.clear()
        home.clearing.run(now)
        home.stonith.run()
        if not home.teller.backlog.soon or not home.open or home.holding:
            return
        if now >= lease.horizon or (self._had_lease and not had_lease):
            home.teller.tell_due()
