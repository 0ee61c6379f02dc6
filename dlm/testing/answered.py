"""What answers may say: to which request, and with which flags."""

from __future__ import annotations

from typing import Any

from dlm.modes import ALTMODE, CW, DEMOTED, PR, VALNOTVALID
from dlm.testing.clients import Operation
from vsync.testing.violation import Violation

__all__ = ["EXPECTED", "OUTCOMES", "check_failure", "check_outcome"]

EXPECTED = {  #: error codes that an honest client may see, by verb
    "lock": {"again", "canceled", "no_quorum", "lost", "deadlock", "timeout", "unknown"},
    "lock_all": {"again", "canceled", "no_quorum", "lost", "deadlock", "timeout"},
    "convert": {"again", "canceled", "no_quorum", "lost", "deadlock", "timeout", "unknown"},
    "unlock": {"unknown", "lost"},
    "unlock_all": {"lost"},
    "cancel": set(),
    "in_use": set(),
    "purge": set(),
}
OUTCOMES = {"demoted": DEMOTED, "altmode": ALTMODE, "valnotvalid": VALNOTVALID}


def check_outcome(operation: Operation, data: dict[str, Any]) -> None:
    """ANSWER: the mode and what is said of it are what was asked for."""
    handle, flags = operation.handle, operation.flags
    others = {mode for word, mode in (("altpr", PR), ("altcw", CW)) if word in flags}
    if data["mode"] != operation.mode and data["mode"] not in others:
        raise Violation("ANSWER", f"{handle} asked for mode {operation.mode} and got {data['mode']}")
    said = data["flags"]
    if bool(said & ALTMODE) != (data["mode"] != operation.mode):
        raise Violation("ANSWER", f"{handle} got mode {data['mode']}, and ALTMODE is {bool(said & ALTMODE)}")
    if said & DEMOTED and "convdeadlk" not in flags:
        raise Violation("ANSWER", f"{handle} gave up its mode without having agreed to it")
    if bool(said & VALNOTVALID) == data["value_valid"] or (data["value_read"] and "valblk" not in flags):
        raise Violation("ANSWER", f"{handle}: the value block was read by {sorted(flags)}, flags {said}")


def check_failure(operation: Operation, data: dict[str, Any]) -> None:
    """ANSWER: a request fails for reasons that it may fail for."""
    handle, verb, code = operation.handle, operation.verb, data["code"]
    if code not in EXPECTED[verb] or (code == "timeout" and "timeout_us" not in operation.flags):
        raise Violation("ANSWER", f"{handle}: {verb} failed with {code!r} ({data['message']})")
    if code == "lost" and verb == "unlock" and operation.flags.isdisjoint({"valblk", "ivvalblk"}):
        raise Violation("ANSWER", f"{handle}: a release that writes nothing has failed")
    if code == "again" and not operation.noqueue and "orphan" not in operation.flags:
        raise Violation("ANSWER", f"{handle}: {verb} failed with 'again' although it may wait")
    if code == "unknown" and verb == "lock" and "orphan" not in operation.flags:
        raise Violation("ANSWER", f"{handle}: there was no lock to ask for, and {verb} makes one")
