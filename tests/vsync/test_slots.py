"""Two slots, written in turn: what a crash at any byte leaves, and what is damage."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vsync.slots import SLOT, Damaged, Slots, blank

Open = Callable[[], Slots]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "record"
    path.write_bytes(blank())
    return path


@pytest.fixture
def again(file: Path) -> Iterator[Open]:
    """Opens the file as a new process would."""
    opened: list[Slots] = []

    def open_it() -> Slots:
        fd = os.open(file, os.O_RDWR)
        try:
            opened.append(Slots(fd))
        except Damaged:
            os.close(fd)
            raise
        return opened[-1]

    yield open_it
    for slots in opened:
        slots.close()


def after(file: Path, data: bytes, again: Open) -> bytes | str | None:
    """What is read from a file with these bytes."""
    file.write_bytes(data)
    try:
        return again().body
    except Damaged:
        return "damaged"


def test_the_last_write_counts(again: Open) -> None:
    slots = again()
    assert slots.body is None
    for number in range(5):
        slots.write(b"%d" % number)
        assert again().body == b"%d" % number


def test_an_empty_record_is_one(again: Open) -> None:
    again().write(b"")
    assert again().body == b""


def test_too_large_a_record_is_refused_and_the_old_one_stays(again: Open) -> None:
    slots = again()
    slots.write(b"old")
    with pytest.raises(OSError, match="there is room for"):
        slots.write(bytes(SLOT))
    slots.write(b"x" * (SLOT - 512))
    assert again().body == b"x" * (SLOT - 512)


@pytest.mark.parametrize("writes", [1, 2, 3])
def test_a_write_that_is_cut_short_leaves_the_old_record(
    file: Path, again: Open, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """The header arrives whole, as a sector does, or not at all; of the body any part, in any order."""
    slots = again()
    old = None
    for number in range(writes - 1):
        old = b"old %d" % number
        slots.write(old)
    before = file.read_bytes()
    with monkeypatch.context() as crash:

        def gone(fd: int) -> None:
            raise KeyboardInterrupt  # the process ends here

        crash.setattr("os.fdatasync", gone)
        with pytest.raises(KeyboardInterrupt):
            slots.write(b"the new record")
    whole = file.read_bytes()
    start = whole.index(b"the new record")
    assert after(file, before, again) == old
    assert after(file, whole, again) == b"the new record"
    for cut in range(start, start + 14):
        for data in (whole[:cut] + before[cut:], whole[:start] + before[start:cut] + whole[cut:]):
            assert after(file, data, again) in (old, b"the new record")
    header, rest = start - 512, start
    for data in (whole[:rest] + before[rest:], before[:header] + before[header:rest] + whole[rest:]):
        assert after(file, data, again) == old
    again().write(b"next")  # over the rest of it
    assert again().body == b"next"


def test_damage_is_found_or_harmless(file: Path, again: Open) -> None:
    slots = again()
    for record in (b"first", b"second", b"third"):
        slots.write(record)
    whole = file.read_bytes()
    used = [n for n in range(len(whole)) if n % SLOT < 600]
    found = []
    for n in used:
        answer = after(file, whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1 :], again)
        assert answer in (b"third", "damaged"), n
        found.append(answer == "damaged")
    assert sum(found) == 2 * 28 + len("third")  # both headers, and the record itself


def test_a_slot_that_was_wiped_is_damage(file: Path, again: Open) -> None:
    slots = again()
    for record in (b"first", b"second", b"third"):
        slots.write(record)
    whole = file.read_bytes()
    assert after(file, whole[:SLOT] + bytes(SLOT), again) == "damaged"
    assert after(file, bytes(SLOT) + whole[SLOT:], again) == "damaged"
    assert after(file, whole[SLOT:] + whole[:SLOT], again) == "damaged"
    assert after(file, whole[:-1], again) == "damaged"


def test_a_failed_write_is_as_if_not_called(again: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = again()
    slots.write(b"old")
    with monkeypatch.context() as broken:

        def fails(fd: int) -> None:
            raise OSError(5, "Input/output error")

        broken.setattr("os.fdatasync", fails)
        with pytest.raises(OSError, match="Input/output"):
            slots.write(b"new")
    assert slots.body == b"old"
    slots.write(b"newer")
    assert again().body == b"newer"
