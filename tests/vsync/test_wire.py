"""Frames survive the way there and back; anything else is a FrameError and nothing worse."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from vsync import wire, wire_forming
from vsync.errors import FrameError
from vsync.types import NO_RING, Member, RingId

TAG = wire.cluster_tag("test")
ME = Member(1, 100)
RING = RingId(7, 1)
HELLO = wire_forming.Hello("test", "127.0.0.1:7410", 1, 1, (("dlm", 1), ("group", 1)), 0xFACE)


def header(kind: wire.FrameType) -> bytes:
    return wire.encode_header(kind, TAG, ME)


CLAIM = wire_forming.Claim(RingId(6, 2), RingId(3, 2), 4, 6, 3, b"if so", (ME,))
CLAIMING = wire_forming.CommitEntry(RingId(3, 2), 4, 6, b"up", (ME,), 2, (CLAIM,), (RingId(5, 1), RingId(4, 1)))

FRAMES = {
    "data": wire.encode_data(
        header(wire.FrameType.DATA), RING, wire.Packet(3, 1, 0, wire.encode_messages([b"a", b"", b"x" * 300]))
    ),
    "token": wire.encode_token(header(wire.FrameType.TOKEN), wire.Token(RING, 5, 9, 8, 2, 1, 3, [4, 5])),
    "join": wire_forming.encode_join(
        header(wire.FrameType.JOIN),
        wire_forming.Join(HELLO, 6, frozenset({ME, Member(2, 5)}), frozenset(), leaving=True),
    ),
    "probe": wire_forming.encode_probe(header(wire.FrameType.PROBE), wire_forming.Probe(HELLO, RING)),
    "cancel": wire.encode_cancel(header(wire.FrameType.CANCEL), wire.Cancel(RING)),
    "commit": wire_forming.encode_commit(
        header(wire.FrameType.COMMIT),
        wire_forming.Commit(
            RING, 1, (ME, Member(2, 5)), [wire_forming.CommitEntry(RingId(3, 2), 4, 6, b"up"), None]
        ),
    ),
    "commit with claims": wire_forming.encode_commit(
        header(wire.FrameType.COMMIT), wire_forming.Commit(RING, 1, (ME, Member(2, 5)), [CLAIMING, None])
    ),
}
DECODERS = {
    "data": wire.decode_data,
    "token": wire.decode_token,
    "join": wire_forming.decode_join,
    "probe": wire_forming.decode_probe,
    "cancel": wire.decode_cancel,
    "commit": wire_forming.decode_commit,
    "commit with claims": wire_forming.decode_commit,
}
REENCODE = {
    "data": lambda x: wire.encode_data(header(wire.FrameType.DATA), *x),
    "token": lambda x: wire.encode_token(header(wire.FrameType.TOKEN), x),
    "join": lambda x: wire_forming.encode_join(header(wire.FrameType.JOIN), x),
    "probe": lambda x: wire_forming.encode_probe(header(wire.FrameType.PROBE), x),
    "cancel": lambda x: wire.encode_cancel(header(wire.FrameType.CANCEL), x),
    "commit": lambda x: wire_forming.encode_commit(header(wire.FrameType.COMMIT), x),
    "commit with claims": lambda x: wire_forming.encode_commit(header(wire.FrameType.COMMIT), x),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_round_trip(kind: str) -> None:
    """Decoding and encoding again gives the same bytes."""
    frame = FRAMES[kind]
    assert wire.decode_header(frame, TAG) == wire.Header(wire.FrameType[kind.split()[0].upper()], ME)
    assert REENCODE[kind](DECODERS[kind](frame)) == frame


def test_messages_and_encapsulated_packets_round_trip() -> None:
    """What recovery wraps comes out as it went in."""
    packet = wire.Packet(9, 2, 0, wire.encode_messages([b"one", b"two"]))
    assert wire.decode_packet(wire.encode_packet(packet)) == packet
    assert wire.decode_messages(packet.body) == [b"one", b"two"]


def test_another_cluster_is_named_as_such() -> None:
    """The error says what to compare."""
    with pytest.raises(FrameError, match=r"another cluster from node 1.*name"):
        wire.decode_header(FRAMES["token"], wire.cluster_tag("other"))


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (b"", "shorter"),
        (b"GET / HTTP/1.1\r\nHost: example\r\n\r\n", "not a vsync frame"),
        (b"VS\x09" + FRAMES["token"][3:], "wire version 9"),
        (FRAMES["token"][:3] + b"\x77" + FRAMES["token"][4:], "bad frame header"),
    ],
)
def test_foreign_headers(frame: bytes, text: str) -> None:
    """Each is refused with its own reason."""
    with pytest.raises(FrameError, match=text):
        wire.decode_header(frame, TAG)


@pytest.mark.parametrize("kind", FRAMES)
def test_mutilated_frames_raise_frame_error_only(kind: str) -> None:
    """Cut, flipped and stretched bodies: a FrameError or a value, never another exception."""
    rng = random.Random(kind)
    frame = FRAMES[kind]
    refused = 0
    for _ in range(3000):
        damaged = bytearray(frame)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(wire.HEADER_SIZE, len(damaged))] = rng.randrange(256)
        if rng.random() < 0.3:
            damaged = damaged[: rng.randrange(wire.HEADER_SIZE, len(damaged))]
        try:
            value = DECODERS[kind](bytes(damaged))
            if kind == "data":
                wire.decode_messages(value[1].body)
        except FrameError:
            refused += 1
    assert refused > 500


def test_equal_sets_of_a_join_are_unpacked_once() -> None:
    """Sixteen nodes on two processors could not form a ring: a JOIN holds 18 sets of 16 members each."""
    everybody = [Member(node, 1_000 + node) for node in range(1, 17)]
    rows = {member: (7, frozenset(everybody)) for member in everybody}
    join = wire_forming.Join(HELLO, 6, frozenset(everybody), frozenset(), False, rows)
    again = wire_forming.decode_join(wire_forming.encode_join(header(wire.FrameType.JOIN), join))
    assert again == join
    assert len({id(heard) for _, heard in again.reach.values()} | {id(again.proc)}) == 1


def test_ring_sequences_beyond_31_bits_are_refused() -> None:
    """Fences have 31 bits for them (pitfalls B4, C5)."""
    join = wire_forming.Join(HELLO, 1 << 31, frozenset({ME}), frozenset(), leaving=False)
    with pytest.raises(FrameError, match="31 bits"):
        wire_forming.decode_join(wire_forming.encode_join(header(wire.FrameType.JOIN), join))


def test_claims_and_missed_attempts_arrive() -> None:
    """K7. Whether a claim is real is found out, not told."""
    entry = wire_forming.decode_commit(FRAMES["commit with claims"]).entries[0]
    assert entry == CLAIMING
    assert entry.real == NO_RING


@pytest.mark.parametrize(
    "entry",
    [
        replace(CLAIMING, claims=(replace(CLAIM, aru=7),)),
        replace(CLAIMING, claims=(replace(CLAIM, stable=5),)),
        replace(CLAIMING, missed=tuple(RingId(n, 1) for n in range(1, 1100))),
    ],
    ids=["beyond the highest", "stable beyond the aru", "too many"],
)
def test_a_claim_that_contradicts_itself_is_refused(entry: wire_forming.CommitEntry) -> None:
    commit = wire_forming.Commit(RING, 1, (ME, Member(2, 5)), [entry, None])
    frame = wire_forming.encode_commit(header(wire.FrameType.COMMIT), commit)
    with pytest.raises(FrameError, match="malformed"):
        wire_forming.decode_commit(frame)
