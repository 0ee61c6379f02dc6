"""Totem single-ring ordering and membership with extended virtual synchrony. Pure: see ``engine.Engine``."""

from vsync.engine.engine import Engine
from vsync.engine.outputs import Configuration, Deliver, Install, Note, Output, Persist, Send, Stopped
from vsync.engine.states import Reason, State

__all__ = [
    "Configuration",
    "Deliver",
    "Engine",
    "Install",
    "Note",
    "Output",
    "Persist",
    "Reason",
    "Send",
    "State",
    "Stopped",
]
