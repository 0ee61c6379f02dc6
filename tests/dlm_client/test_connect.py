"""``dlm.connect``: which daemon, and what is said when it is not there."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

import dlm


def test_the_error_names_the_url_and_a_remedy(tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/none.sock"
    with pytest.raises(dlm.NotConnected, match="start vsyncd") as caught:
        dlm.connect(url)
    assert caught.value.url == url
    assert url in str(caught.value)
    assert isinstance(caught.value, ConnectionError)


def test_the_url_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSYNC_URL", f"unix://{tmp_path}/elsewhere.sock")
    with pytest.raises(dlm.NotConnected) as caught:
        dlm.connect()
    assert caught.value.url == f"unix://{tmp_path}/elsewhere.sock"


def test_without_any_the_url_is_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VSYNC_URL", raising=False)
    monkeypatch.setattr("vsync.ipc.SocketChannel", _no_channel)
    with pytest.raises(_AskedFor, match=r"^unix:///run/vsync/vsyncd.sock$"):
        dlm.connect()


class _AskedFor(Exception):
    pass


def _no_channel(url: str, name: str | None) -> None:
    raise _AskedFor(url)


def test_an_address_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(dlm.NotConnected, match="is not an address"):
        dlm.connect("tcp://127.0.0.1:1")


def test_somebody_else_at_the_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "other.sock"))
        listener.listen()
        listener.settimeout(20)

        # What is not a daemon closes the connection, or says something else.
        def refuse() -> None:
            with listener.accept()[0] as connection:
                connection.recv(100)

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(dlm.NotConnected, match="closed before a welcome"):
            dlm.connect(str(tmp_path / "other.sock"))
        thread.join()
