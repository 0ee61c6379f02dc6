"""Other lock services beside our own figures: each starts where it is installed, and one pair works."""

from __future__ import annotations

import pytest

from dlm.bench.callers import Callers
from dlm.bench.peers import PEERS, Server, missing


@pytest.mark.long
@pytest.mark.parametrize("peer", sorted(PEERS))
def test_its_servers_start_and_a_pair_works(peer: str) -> None:
    if why := missing(peer):
        pytest.skip(f"{peer}: {why}")
    with Server(peer) as server, Callers([("peer", peer, str(server.port), "try")]) as callers:
        found = callers.measure("", 0.1)
    assert found.value > 0
    assert found.p50_us
    assert found.messages == 0  # of ours


@pytest.mark.parametrize("peer", sorted(PEERS))
def test_what_is_not_installed_is_named(peer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, package, _ = PEERS[peer]
    monkeypatch.setattr("dlm.bench.peers.shutil.which", lambda name: None)
    monkeypatch.setattr("dlm.bench.peers.glob.glob", lambda pattern: [])
    assert missing(peer) == f"{program} is not installed (package {package})"
