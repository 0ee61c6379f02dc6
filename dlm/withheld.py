"""What keeps a decided answer from being told (pitfalls K9, K10, C14, D4; design §5.4).

The table decides at once; ``Teller`` tells what this module lets pass. A grant is told within a lease, and

* after an unclean departure not before the horizon (K10): the vanished node may have been granted, by its own
  delivery, something that nobody else has heard of. Private names that were owned before it left need not wait;
* in a lockspace that settles (``Options.settles``) not before all members have what decided it. So what a vanished
  node was granted is known, and only names that it held or owned wait for the horizon;
* if the name is concerned by a failure (``dlm.failures``), not before that has all it needs;
* if it brings a value block, not before all members have the last write to that (C14). So does the answer to an
  operation that wrote one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlm.lock import Effect, What
from dlm.modes import DEMOTED, NONE, is_down
from dlm.names import Form

if TYPE_CHECKING:
    from dlm.handle import Handle
    from dlm.home import Home

__all__ = ["FAILURE", "HORIZON", "LEASE", "STABLE", "VIEW", "kept", "known", "reason", "settles_after"]

VIEW = "view"  #: no primary view, or one that is just being installed
LEASE = "lease"
HORIZON = "horizon"
STABLE = "stable"
FAILURE = "failure"


def kept(handle: Handle, effect: Effect) -> bool:
    """Whether a grant gives its holder nothing that it has not had."""
    same = effect.mode == handle.mode or is_down(handle.mode, effect.mode)
    return handle.mode != NONE and same and not effect.flags & DEMOTED


def settles_after(home: Home, handle: Handle, effect: Effect) -> int:
    """The position of the table that all members must have before this new outcome is told; 0: it need not wait."""
    table = home.table
    if effect.what is not What.GRANTED or not (table.history.written or table.spaces.special):
        return 0  # nearly always
    written = table.history.written.get(handle.key, 0)
    if kept(handle, effect):
        return written if written == table.applied else 0  # this very event wrote it
    after = written if effect.value is not None else 0
    if table.spaces.options(handle.key).settles:
        name = table.names.get(handle.key)
        # Of a private name the others know only whose it is: that is enough.
        own = name is not None and name.form is Form.PRIVATE
        after = max(after, name.epoch if own and name is not None else table.applied)
    return after


def reason(home: Home, handle: Handle, effect: Effect) -> str:
    """Why this outcome may not be told now; empty if it may.

    Releases and refusals wait for no horizon. A grant is told only within a lease: a stale member of a ring that
    others have left may still deliver one, but it is worth nothing.
    """
    if home.holding or not home.open:
        return VIEW
    if effect.what is not What.GRANTED:
        return ""
    if handle.after > home.settled.applied:
        return STABLE
    now, lease, failures = home.now, home.lease, home.table.failures
    valid = lease.valid(now)
    if (valid and now >= lease.horizon and not failures.every) or kept(handle, effect):
        return ""
    if not valid:
        return LEASE
    if now < lease.horizon and not known(home, handle.key):
        return HORIZON
    return FAILURE if failures.concerns(handle.key) else ""


def known(home: Home, key: bytes) -> bool:
    """Whether the vanished nodes cannot hold this name in secret, so that it need not wait for the horizon."""
    lease, table = home.lease, home.table
    if table.spaces.options(key).settles:
        return home.now >= lease.blind and key not in table.failures.lately
    name = table.names.get(key)
    if name is None or name.form is not Form.PRIVATE or name.owner != home.host.me.node:
        return False
    return name.epoch <= lease.settled  # the vanished node knew of this ownership
