"""Recordings of the flight recorder as files: ``<state_dir>/flight/<UTC time>-<why>.rec``, the newest eight.

They hold the cluster's messages in the clear, so only the daemon's user can read them.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import vsync
from vsync.clock import boot_us, wall_us
from vsync.errors import RecordingError
from vsync.logs import get_logger
from vsync.recorder import Recorder, Recording

__all__ = ["DUMP_ON", "Dumps"]

KEPT = 8  #: files; older ones are removed
#: Notes that tell of a broken invariant: what led to it must not be lost.
DUMP_ON = frozenset({"diverged", "dlm.diverged"})

_log = get_logger("vsync.node")


class Dumps:
    """Writes what ``recorder`` keeps into ``folder``. Its methods are called by the node's thread."""

    def __init__(self, recorder: Recorder, folder: Path) -> None:
        self.recorder = recorder
        self._folder = folder

    def write(self, reason: str) -> Path | None:
        """Write now, before the node ends. Never raises; what went wrong is in the log."""
        try:
            return self._write(self.recorder.take(), reason)
        except Exception as e:  # noqa: BLE001 - called when a node fails: that must stay the failure that is told
            _log.error("flight_not_recorded", reason=reason, error=str(e))
            return None

    def start(self, reason: str, done: Callable[[bool, dict[str, Any]], None] | None = None) -> None:
        """Write on a thread of its own: the ring must not wait. ``done(ok, answer)`` is called on that thread."""
        recording = self.recorder.take()

        def work() -> None:
            try:
                path = self._write(recording, reason)
                answer = (True, {"path": str(path), "bytes": path.stat().st_size})
            except Exception as e:  # noqa: BLE001 - whoever asked is told
                _log.error("flight_not_recorded", reason=reason, error=str(e))
                answer = (False, {"code": "failed", "message": f"the recording cannot be written: {e}"})
            if done is not None:
                done(*answer)

        threading.Thread(target=work, name="vsync-dump", daemon=True).start()

    def _write(self, recording: Recording, reason: str) -> Path:
        now = datetime.now(UTC)
        about = {"reason": reason, "wall_us": wall_us(), "boot_us": boot_us(), "version": vsync.__version__}
        word = re.sub(r"[^a-z0-9]+", "-", reason.lower()).strip("-")[:40]
        path = self._folder / f"{now:%Y%m%dT%H%M%S.%f}Z-{word}.rec"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = path.with_suffix(".new")
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(fd, "wb") as file:
                for chunk in recording.chunks(**about):
                    file.write(chunk)
            temporary.rename(path)
            for old in sorted(self._folder.glob("*.rec"))[:-KEPT]:
                old.unlink(missing_ok=True)
        except OSError as e:
            raise RecordingError(f"{path}: {e.strerror or e}") from e
        _log.info("flight_recorded", path=str(path), reason=reason)
        return path
