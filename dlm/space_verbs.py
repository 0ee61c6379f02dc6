"""The verbs about lockspaces (locks.md §1.13): make, open, close, release, list. ``dlm.gate`` carries them out.

``space_create`` and ``space_open`` answer with the lockspace, which is open for the session from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dlm import arguments, options
from dlm.spaces import CREATE, EXCLUSIVE, OPEN

if TYPE_CHECKING:
    from dlm.service import DlmService

__all__ = ["VERBS"]

Args = Mapping[str, Any]


def _create(service: DlmService, session: int, rid: int, args: Args) -> None:
    """A new lockspace; without ``exclusive`` an existing one will do, as it is."""
    name, how = arguments.space(args), EXCLUSIVE if args.get("exclusive") else CREATE
    wanted = service.configured.options(name).changed(options.given(args))
    made = arguments.permissions(args), arguments.value_limit(args), wanted
    service.home.gate.open(session, rid, name, how, made, arguments.fails(args))


def _open(service: DlmService, session: int, rid: int, args: Args) -> None:
    service.home.gate.open(session, rid, arguments.space(args), OPEN, fails=arguments.fails(args))


def _set(service: DlmService, session: int, rid: int, args: Args) -> None:
    """Other options from now on; those that are not named stay as they are."""
    service.home.gate.set_options(session, rid, arguments.space(args), options.given(args))


def _close(service: DlmService, session: int, rid: int, args: Args) -> None:
    service.home.gate.close(session, rid, arguments.space(args))


def _release(service: DlmService, session: int, rid: int, args: Args) -> None:
    force = arguments.number(args, "force", 0, 0)
    if force > 2:
        raise arguments.BadArgument("force must be 0 (no locks), 1 (no locks of this node) or 2 (in any case)")
    service.home.gate.release(session, rid, arguments.space(args), force)


def _ls(service: DlmService, session: int, rid: int, args: Args) -> None:
    """All lockspaces, as this node knows them, with the number of names that have locks or have just had some."""
    table = service.table
    names = {**table.spaces.names, "default": len(table.names) - table.spaces.names.total()}
    rows = [{**space.row(), "names": names.get(space.name, 0)} for space in table.spaces]
    service.host.reply(session, rid, rows)


VERBS: dict[str, Callable[[DlmService, int, int, Args], None]] = {
    "space_create": _create,
    "space_open": _open,
    "space_close": _close,
    "space_release": _release,
    "space_set": _set,
    "space_ls": _ls,
}
