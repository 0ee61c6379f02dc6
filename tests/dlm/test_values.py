"""Value blocks through the service, by rule (locks.md §1.9): the whole table with all flags, and L1 to L10.

Each once with the name private to one node, where nothing is sent, and once shared by three.
"""

from __future__ import annotations

from typing import Any

import pytest

from dlm.modes import CR, CW, EX, MODES, NAMES, NL, PR, PW, VALNOTVALID
from tests.dlm.bus import CLIENT, LEASE, Bus

KEEPER = 9
WHERE = {"private": (1, 1), "shared": (1, 2)}  #: nodes of the lock that is tested, and of the others

#: §1.9; rows: from, columns: to.
TABLE = {NL: "RRRRRR", CR: ".RRRRR", CW: "..RRRR", PR: "...RRR", PW: "WWWWWR", EX: "WWWWWW"}
CELLS = [(old, new, row[new]) for old, row in TABLE.items() for new in MODES]


class Scene:
    """R with a keeper in NL, whose value block is ``seed``."""

    def __init__(self, where: str) -> None:
        self.bus = Bus()
        self.mine, self.other = WHERE[where]
        for node in {self.mine, self.other, *((3,) if where == "shared" else ())}:
            self.bus[node].service.open(KEEPER, CLIENT, self.bus.now)
            self.bus.lock(node, mode=NL, session=KEEPER)
            self.bus.run()
        self.write(b"seed")

    def lock(self, node: int, mode: int, session: int = 1, **flags: Any) -> tuple[dict[str, Any], int]:
        """A granted lock: (what it was told, its handle)."""
        rid, h = self.bus.lock(node, mode=mode, session=session, **flags)
        self.bus.run()
        assert self.bus.granted(rid)
        return self.bus.result(rid), h

    def convert(self, h: int, mode: int, **flags: Any) -> Any:
        """The answer; ``None`` if it waits."""
        rid = self.bus.call(self.mine, "convert", h=h, mode=mode, **flags)
        self.bus.run()
        return self.bus.result(rid)

    def unlock(self, h: int, node: int = 0, session: int = 1, **flags: Any) -> None:
        self.bus.call(node or self.mine, "unlock", session, h=h, **flags)
        self.bus.run()

    def write(self, data: bytes, **flags: Any) -> None:
        _, h = self.lock(self.mine, EX)
        self.unlock(h, valblk=True, value=data, **flags)

    def block(self) -> tuple[bytes, bool]:
        """As somebody else reads it."""
        told, h = self.lock(self.other, NL, 2, valblk=True, expedite=True)
        self.unlock(h, self.other, 2)
        assert told["value_read"]
        return told["value"], told["value_valid"]

    def contents(self) -> list[tuple[bytes, bool]]:
        """In every table that has them."""
        resources = [node.table.names[b"\0R"].resource for node in self.bus.alive()]
        return [(resource.value, resource.valid) for resource in resources if resource is not None]


@pytest.fixture(params=list(WHERE))
def scene(request: pytest.FixtureRequest) -> Scene:
    return Scene(request.param)


@pytest.mark.parametrize("flags", ["", "valblk", "ivvalblk", "valblk ivvalblk"])
@pytest.mark.parametrize(("old", "new", "way"), CELLS, ids=lambda x: NAMES[x] if isinstance(x, int) else x)
def test_every_conversion_with_every_flag(scene: Scene, old: int, new: int, way: str, flags: str) -> None:
    """36 cells: what is read, what is written, what is said, what others find."""
    _, h = scene.lock(scene.mine, old)
    told = scene.convert(h, new, value=b"new", **dict.fromkeys(flags.split(), True))
    reads = way == "R" and "valblk" in flags.split()
    assert (told["value_read"], told["value"]) == (reads, b"seed" if reads else b"")
    if way == "W" and "ivvalblk" in flags:
        expected = b"seed", False
    elif way == "W" and flags == "valblk":
        expected = b"new", True
    else:
        expected = b"seed", True
    assert set(scene.contents()) == {expected}
    assert scene.block() == expected
    assert bool(told["flags"] & VALNOTVALID) == ("valblk" in flags.split() and not expected[1])


@pytest.mark.parametrize("mode", MODES, ids=NAMES)
@pytest.mark.parametrize("flags", ["", "valblk"])
def test_l1_a_new_lock_reads_with_valblk(scene: Scene, mode: int, flags: str) -> None:
    told, _ = scene.lock(scene.mine, mode, **dict.fromkeys(flags.split(), True))
    assert (told["value_read"], told["value"]) == (bool(flags), b"seed" if flags else b"")


def test_l1_nobody_has_written_yet() -> None:
    bus = Bus()
    rid, _ = bus.lock(1, valblk=True)
    bus.run()
    told = bus.result(rid)
    assert (told["value"], told["value_read"], told["value_valid"]) == (b"", True, True)


def test_l2_ivvalblk_goes_before_valblk_and_keeps_the_contents(scene: Scene) -> None:
    _, h = scene.lock(scene.mine, EX)
    scene.convert(h, PW, valblk=True, ivvalblk=True, value=b"new")
    assert scene.contents()[0] == (b"seed", False)
    scene.convert(h, PW, valblk=True, value=b"new")
    assert scene.contents()[0] == (b"new", True)


@pytest.mark.parametrize("flags", ["", "valblk", "ivvalblk", "valblk ivvalblk"])
@pytest.mark.parametrize("mode", MODES, ids=NAMES)
def test_l3_a_release_writes_from_pw_and_ex_alone(scene: Scene, mode: int, flags: str) -> None:
    _, h = scene.lock(scene.mine, mode)
    scene.unlock(h, value=b"new", **dict.fromkeys(flags.split(), True))
    if mode < PW or not flags:
        assert scene.block() == (b"seed", True)
    else:
        assert scene.block() == ((b"seed", False) if "ivvalblk" in flags else (b"new", True))


def test_l3_a_release_of_what_still_waits_writes_nothing(scene: Scene) -> None:
    _, h = scene.lock(scene.mine, PR)
    _, waits = scene.bus.lock(scene.other, mode=EX, session=2)
    scene.bus.run()
    scene.unlock(waits, scene.other, 2, valblk=True, value=b"new")
    scene.unlock(h)
    assert scene.block() == (b"seed", True)


def test_l4_the_next_one_reads_what_was_written(scene: Scene) -> None:
    _, h = scene.lock(scene.mine, EX)
    rid, _ = scene.bus.lock(scene.other, mode=EX, session=2, valblk=True)
    scene.bus.run()
    scene.unlock(h, valblk=True, value=b"new")
    assert scene.bus.result(rid)["value"] == b"new"


def test_l5_whoever_takes_part_is_told_that_the_block_is_not_valid(scene: Scene) -> None:
    """With VALBLK: a new lock, a conversion that reads, one that does nothing; without it nobody is."""
    _, h = scene.lock(scene.mine, EX)
    scene.unlock(h, ivvalblk=True)
    for mode in MODES:
        told, h = scene.lock(scene.mine, mode, valblk=True)
        assert (told["value_valid"], told["flags"]) == (False, VALNOTVALID)
        scene.unlock(h)
    _, h = scene.lock(scene.mine, PR)
    for mode, flags in ((PW, ["valblk"]), (EX, ["valblk"]), (PR, []), (CR, ["valblk"]), (NL, ["valblk"]), (CW, [])):
        assert bool(scene.convert(h, mode, **dict.fromkeys(flags, True))["flags"]) == bool(flags), NAMES[mode]


def test_l6_reading_and_time_do_not_make_it_valid(scene: Scene) -> None:
    scene.write(b"", ivvalblk=True)
    for mode in (NL, PR, EX):
        _, h = scene.lock(scene.mine, mode, valblk=True)
        scene.unlock(h)
        scene.bus.advance(LEASE)
        assert scene.block() == (b"seed", False)
    _, h = scene.lock(scene.mine, PW)
    scene.unlock(h, valblk=True, value=b"new")
    assert scene.block() == (b"new", True)


@pytest.mark.parametrize("mode", MODES, ids=NAMES)
@pytest.mark.parametrize("converting", [False, True])
@pytest.mark.parametrize("who", ["process", "node"])
def test_l7_a_writer_that_ends_otherwise_leaves_it_not_valid(mode: int, converting: bool, who: str) -> None:
    """A converting one still holds what it had."""
    scene = Scene("shared")
    _, h = scene.lock(scene.mine, mode)
    if converting and mode < EX:
        scene.lock(scene.other, CR, 2)
        assert scene.convert(h, EX) is None
    if who == "process":
        scene.bus.close(scene.mine)
        scene.bus.run()
    else:
        scene.bus.kill(scene.mine)
        scene.bus.view([2, 3])
        scene.bus.advance(2 * LEASE)
    assert scene.block() == (b"seed", mode < PW)


def test_l7b_flags_of_an_earlier_operation_write_nothing(scene: Scene) -> None:
    """The kernel's unlock remembers VALBLK of the request."""
    _, h = scene.lock(scene.mine, PW, valblk=True)
    scene.convert(h, EX, valblk=True, value=b"mine")
    scene.unlock(h, value=b"mine")
    assert scene.block() == (b"seed", True)


def test_l8_refusals_and_withdrawals_read_nothing(scene: Scene) -> None:
    _, h = scene.lock(scene.mine, PR)
    scene.lock(scene.other, PR, 2)
    assert scene.convert(h, EX, noqueue=True, valblk=True) == "again"
    waits = scene.bus.call(scene.mine, "convert", h=h, mode=EX, valblk=True)
    scene.bus.run()
    scene.bus.call(scene.mine, "cancel", h=h)
    scene.bus.run()
    assert scene.bus.result(waits) == "canceled"


def test_l9_from_nl_every_mode_reads(scene: Scene) -> None:
    """A former libdlm looked at the mode after it had changed it. Through the client: test_semantics.py."""
    _, h = scene.lock(scene.mine, NL)
    for mode in MODES:
        told = scene.convert(h, mode, valblk=True)
        assert (told["value_read"], told["value"]) == (True, b"seed")
        scene.convert(h, NL)


def test_l10_the_last_release_ends_the_block_and_nl_keeps_it() -> None:
    for keep in (False, True):
        bus = Bus()
        _, h = bus.lock(1)
        if keep:
            bus.lock(1, mode=NL, session=2, expedite=True)
        bus.run()
        bus.call(1, "unlock", h=h, valblk=True, value=b"v")
        bus.run()
        rid, _ = bus.lock(1, valblk=True)
        bus.run()
        assert (bus.result(rid)["value"], bus.result(rid)["value_valid"]) == (b"v" if keep else b"", True)
