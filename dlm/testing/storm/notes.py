"""The notes of all clients of a storm as they come in: read on from where they were read last."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from dlm.testing.calls import Note, Result, Verb, What, parse
from dlm.testing.storm.names import is_kept

__all__ = ["Notes"]


class Notes:
    """All notes in ``folder``, and who has come how far."""

    def __init__(self, folder: Path) -> None:
        self.all: list[Note] = []
        self.granted: dict[str, int] = {}  #: by client: when its last request that was granted was called
        self.node: dict[str, str] = {}  #: by client: the node that it asked last
        self.grants: list[int] = []  #: when anybody was told of one
        self._keeping: dict[str, dict[int, str]] = defaultdict(dict)  # by client and handle: names
        self._folder = folder
        self._offsets: dict[Path, int] = {}
        self._asked: dict[tuple[str, int], Note] = {}

    def poll(self) -> list[Note]:
        """Read what is new; returns it."""
        new: list[Note] = []
        for path in sorted(self._folder.glob("*.notes")):
            offset = self._offsets.get(path, 0)
            with open(path, "rb") as file:
                file.seek(offset)
                data = file.read()
            end = data.rfind(b"\n") + 1
            self._offsets[path] = offset + end
            new += parse(data[:end])
        for note in new:
            self._look(note)
        self.all += new
        return new

    def keepers(self, clients: Iterable[str], wanted: bool) -> list[str]:
        """Those of ``clients`` that hold a lock to be kept for a while; ``wanted``: and others wait for it."""
        asked = {note.name for note in self._asked.values()}
        return [name for name in clients if any(not wanted or n in asked for n in self._keeping[name].values())]

    def _look(self, note: Note) -> None:
        if note.what is What.CALL and note.verb is Verb.ACQUIRE:
            self._asked[note.client, note.op] = note
            self.node[note.client] = note.node
        elif note.what is What.CALL and note.verb is Verb.RELEASE:
            self._keeping[note.client].pop(note.handle, None)
        elif note.what is What.RETURN:
            asked = self._asked.pop((note.client, note.op), None)
            if asked is not None and note.result is Result.OK:
                self.granted[note.client] = asked.t
                self.grants.append(note.t)
                if is_kept(asked.name):
                    self._keeping[note.client][asked.handle] = asked.name
