"""Logging: structlog events on top of the standard ``logging``.

A library must not decide where logs go, so loggers made here hand their lines to the standard logger of
the same name; an embedding program sees nothing below WARNING until it configures logging itself. The
daemon calls ``configure``: one line per state change on stderr, JSON unless that is a terminal.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

__all__ = ["configure", "get_logger"]

_Event = MutableMapping[str, Any]


def _to_text(logger: Any, name: str, event: _Event) -> str:
    head = f"{event.pop('timestamp')} {event.pop('level'):<7} {event.pop('event')}"
    trace = event.pop("exception", None)
    pairs = " ".join(f"{key}={_value(value)}" for key, value in event.items())
    return "\n".join(part for part in (f"{head} {pairs}".rstrip(), trace) if part)


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return repr(text) if isinstance(value, str) and (" " in text or not text) else text


_renderer: Any = _to_text


def _render(logger: Any, name: str, event: _Event) -> Any:
    return _renderer(logger, name, event)


_PROCESSORS: list[Any] = [
    structlog.stdlib.filter_by_level,
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
    _render,
]


def get_logger(name: str) -> Any:
    """A structlog logger (``log.info("view_installed", ring="1.7b1")``) over ``logging.getLogger(name)``."""
    return structlog.wrap_logger(
        logging.getLogger(name),
        processors=_PROCESSORS,
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
    )


def configure(level: str = "info", log_format: str = "auto") -> None:
    """For programs that are daemons: log ``level`` and above to stderr. ``log_format``: auto, json, text."""
    global _renderer
    json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    _renderer = structlog.processors.JSONRenderer(default=str) if json else _to_text
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
