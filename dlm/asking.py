"""Requests for locks: what they say, and that nothing is left of one whose caller has gone (API-R8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dlm.info import Flag

if TYPE_CHECKING:
    from dlm.grant import Grant
    from dlm.session_base import SessionBase

__all__ = ["lock_args", "requested", "taken_back"]


def lock_args(
    session: SessionBase, grant: Grant, flags: Flag, timeout: float | None, no_quorum: str, xid: int | None
) -> dict[str, Any]:
    """The arguments of a request for one lock. A time-out of 0 is a try. What the node takes for granted is left
    out: each word is packed, and unpacked and looked at there.
    """
    args: dict[str, Any] = flags.args() if flags else {}
    args["h"], args["name"], args["mode"] = grant.serial, grant.name, int(grant.mode)
    args["space"], args["valblk"] = session.space, True
    if grant.tells:
        args["blocking"] = True
    if timeout == 0:
        args["no_quorum"] = "fail"
        if not flags & Flag.EXPEDITE:
            args["noqueue"] = True
    elif no_quorum != "wait":
        args["no_quorum"] = no_quorum
    args.update(session.identity(xid))
    if timeout:
        args.update(session.limit(timeout))
    return args


@contextmanager
def requested(
    session: SessionBase, verb: str, args: Mapping[str, Any], withdraw: Callable[[Future[Any] | None], None]
) -> Iterator[Future[Any]]:
    """Send a request; the body waits for the answer and makes something of it.

    If the body fails – by a refusal, a time-out, a cancellation, an interrupt – what was asked for is withdrawn.
    ``withdraw`` gets the future, or ``None`` if it is not known whether the request was sent. Raises
    ``NotConnected``, ``ForkedProcess``.
    """
    future: Future[Any] | None = None
    try:
        future = session.start(verb, args)
        yield future
    except BaseException:
        withdraw(future)
        raise


def taken_back(session: SessionBase, grant: Grant) -> Callable[[Future[Any] | None], None]:
    """How to withdraw the request for one lock."""

    def withdraw(future: Future[Any] | None) -> None:
        grant.mark_withdrawn()
        session.withdraw(grant, future)

    return withdraw
