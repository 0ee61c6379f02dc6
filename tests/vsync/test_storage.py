"""The state directory: what survives, and what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vsync.errors import StateDirectoryError
from vsync.storage import StateDirectory


def test_a_record_survives_and_the_incarnation_grows(tmp_path: Path) -> None:
    first = StateDirectory(tmp_path / "new" / "state", "c", 1)
    assert first.record is None
    first.write(b"one")
    first.write(b"two")
    first.close()
    second = StateDirectory(tmp_path / "new" / "state", "c", 1)
    assert second.record == b"two"
    assert second.incarnation > first.incarnation
    second.close()


def test_the_incarnation_grows_although_the_clock_went_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = StateDirectory(tmp_path, "c", 1)
    first.close()
    monkeypatch.setattr("vsync.storage.wall_us", lambda: 5)
    second = StateDirectory(tmp_path, "c", 1)
    second.close()
    assert second.incarnation == first.incarnation + 1


def test_in_use_names_the_process(tmp_path: Path) -> None:
    held = StateDirectory(tmp_path, "c", 1)
    with pytest.raises(StateDirectoryError, match=f"in use by process {os.getpid()}"):
        StateDirectory(tmp_path, "c", 1)
    held.close()
    StateDirectory(tmp_path, "c", 1).close()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    program = "import sys,os;from vsync.storage import *;d=StateDirectory(sys.argv[1],'c',1);os._exit(9)"
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=30)
    StateDirectory(tmp_path, "c", 1).close()


@pytest.mark.parametrize(
    ("cluster", "node"), [("other", 1), ("c", 2)], ids=["another cluster", "another node"]
)
def test_a_foreign_directory_is_refused(tmp_path: Path, cluster: str, node: int) -> None:
    StateDirectory(tmp_path, "c", 1).close()
    with pytest.raises(StateDirectoryError, match="belongs to node 1 of cluster 'c', not to node"):
        StateDirectory(tmp_path, cluster, node)


def test_a_torn_incarnation_is_refused(tmp_path: Path) -> None:
    StateDirectory(tmp_path, "c", 1).close()
    name = "incarnation"
    whole = (tmp_path / name).read_bytes()
    damaged = [whole[:n] for n in range(len(whole))]
    damaged += [whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1 :] for n in range(len(whole))]
    for data in [*damaged, whole + b"x"]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(StateDirectoryError, match=f"{name} is damaged"):
            StateDirectory(tmp_path, "c", 1)
    (tmp_path / name).write_bytes(whole)
    StateDirectory(tmp_path, "c", 1).close()  # no refusal left the lock behind


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path, "c", 1)
    state.write(b"a record")
    state.write(b"another")
    state.close()
    whole = (tmp_path / "record").read_bytes()
    body = whole.index(b"another")
    for data in (whole[:-1], whole + b"x", b"", whole[:body] + b"x" + whole[body + 1 :]):
        (tmp_path / "record").write_bytes(data)
        with pytest.raises(StateDirectoryError, match="record is damaged"):
            StateDirectory(tmp_path, "c", 1)
    (tmp_path / "record").write_bytes(whole)
    StateDirectory(tmp_path, "c", 1).close()  # no refusal left the lock behind


def test_a_half_written_new_file_does_not_matter(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path, "c", 1)
    state.write(b"good")
    state.close()
    (tmp_path / "incarnation.new").write_bytes(b"hal")
    again = StateDirectory(tmp_path, "c", 1)
    assert again.record == b"good"
    again.close()


def test_an_unusable_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateDirectoryError, match=r"cannot be used: .*set another state_dir"):
        StateDirectory(tmp_path / "file", "c", 1)


def test_a_failed_write_keeps_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateDirectory(tmp_path, "c", 1)
    state.write(b"old")

    def full(fd: int, data: bytes, place: int) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        with pytest.raises(StateDirectoryError, match="record cannot be written: No space left"):
            state.write(b"new")
    state.close()
    again = StateDirectory(tmp_path, "c", 1)
    assert again.record == b"old"
    again.close()


def test_a_removed_record_is_not_written_into_the_void(tmp_path: Path) -> None:
    """The file is open, so the write would succeed, and be forgotten with the process (EVS-E6)."""
    state = StateDirectory(tmp_path / "s", "c", 1)
    state.write(b"old")
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(StateDirectoryError, match="record cannot be written: the file was removed"):
        state.write(b"new")
    state.close()


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path, "c", 1)
    ready_r, ready_w = os.pipe()
    stay_r, stay_w = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(stay_w)
        os.write(ready_w, b".")
        os.read(stay_r, 1)  # until the parent closes its end
        os._exit(0)
    try:
        os.read(ready_r, 1)
        state.close()
        StateDirectory(tmp_path, "c", 1).close()
    finally:
        for fd in (ready_r, ready_w, stay_r, stay_w):
            os.close(fd)
        os.waitpid(child, 0)
