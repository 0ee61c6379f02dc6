"""``@client.synchronized("volume/{vol.id}")``: a function that runs under a lock named after its arguments."""

from __future__ import annotations

import functools
import inspect
import string
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from dlm.errors import ConfigError
from dlm.info import Mode
from dlm.recipes.deadline import Deadline
from dlm.recipes.reentrant import ReentrantLock

if TYPE_CHECKING:
    from dlm.client import Client

__all__ = ["synchronized"]

P = ParamSpec("P")
R = TypeVar("R")


def synchronized(
    client: Client,
    template: str,
    mode: Mode = Mode.EX,
    timeout: float | None = None,
    *,
    reentrant: bool = False,
    held_as: str | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: every call takes the lock, in ``mode``, whose name is ``template`` formatted with the arguments.

    Fields are names of parameters, with attributes and items as in ``str.format``: ``{vol.id}``, ``{self.name}``,
    ``{0}``. ``held_as`` names a keyword parameter that gets the ``Held``, for its fence. ``timeout`` in seconds.

    Decorating raises ``ConfigError`` for a field that is no parameter, and ``TypeError`` for coroutines and
    generators, whose bodies run after the call. A call raises what ``with client.lock(...)`` does, ``LockLost`` at
    the end included.
    """
    Deadline(timeout)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        _check(function, template, signature, held_as)

        @functools.wraps(function)
        def locked(*args: P.args, **kwargs: P.kwargs) -> R:
            given = {**kwargs, held_as: None} if held_as else kwargs
            bound = signature.bind(*args, **given)
            bound.apply_defaults()
            name = template.format(*args, **bound.arguments)
            lock = ReentrantLock(client, name, mode, timeout) if reentrant else client.lock(name, mode, timeout)
            with lock as held:
                if held_as:
                    kwargs[held_as] = held
                return function(*args, **kwargs)

        return locked

    return decorate


def _check(
    function: Callable[..., object], template: str, signature: inspect.Signature, held_as: str | None
) -> None:
    """What can be known to be wrong before the first call."""
    late = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    if any(kind(function) for kind in late):
        raise TypeError(f"{function!r} would run after its lock has been released")
    names = set(signature.parameters)
    if held_as is not None and held_as not in names:
        raise ConfigError(f"{function!r} has no parameter {held_as!r}")
    for _, field, _, _ in string.Formatter().parse(template):
        if field is not None and not ((first := _first(field)) in names or first.isdigit()):
            raise ConfigError(f"{{{field}}} in {template!r} is no parameter of {function!r}")


def _first(field: str) -> str:
    """The parameter that a field such as ``vol.id`` or ``row[key]`` begins with."""
    return field.split(".")[0].split("[")[0]
