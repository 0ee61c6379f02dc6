"""The deadline page: whole pairs only, (0, 0) when in doubt."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from vsync.page import Page, PageError, PageReader


def test_what_is_written_is_read(tmp_path: Path) -> None:
    page = Page(tmp_path / "p")
    reader = PageReader(tmp_path / "p")
    assert reader.read() == (0, 0)
    page.write(3, 1 << 62)
    assert reader.read() == (3, 1 << 62)
    page.close()
    assert reader.read() == (0, 0)
    assert not (tmp_path / "p").exists()
    reader.close()


def test_a_writer_stopped_in_the_middle_means_nothing_is_valid(tmp_path: Path) -> None:
    page = Page(tmp_path / "p")
    page.write(3, 99)
    reader = PageReader(tmp_path / "p")
    page._words[1] += 1  # the version is odd while a write goes on
    assert reader.read() == (0, 0)
    page.close()
    reader.close()


def test_a_mixed_pair_is_not_believed(tmp_path: Path) -> None:
    page = Page(tmp_path / "p")
    page.write(3, 99)
    reader = PageReader(tmp_path / "p")
    page._words[3] = 100  # as if stores had been reordered
    assert reader.read() == (0, 0)
    page.close()
    reader.close()


def test_pairs_stay_together_under_a_busy_writer(tmp_path: Path) -> None:
    page = Page(tmp_path / "p")
    reader = PageReader(tmp_path / "p")
    stop = threading.Event()

    def write() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            page.write(n, n * 7)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(20_000):
            generation, deadline = reader.read()
            assert deadline == generation * 7
    finally:
        stop.set()
        writer.join()
    page.close()
    reader.close()


@pytest.mark.parametrize(
    ("content", "says"), [(b"short", "too short"), (b"\0" * 8192, "bad magic"), (None, "cannot be read")]
)
def test_what_is_not_a_page_is_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / "p").write_bytes(content)
    with pytest.raises(PageError, match=says):
        PageReader(tmp_path / "p")
