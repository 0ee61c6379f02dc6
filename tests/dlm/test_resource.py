"""Golden scripts of one resource (locks.md §1.18, Q14); ``test_model.py`` compares it with the dumb model."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dlm import modes
from dlm.modes import NAMES
from dlm.resource import Effect, Lock, Resource, What
from tests.dlm.golden import GOLDEN, STEP, VALUES, steps

_WORDS = (
    "NOQUEUE", "VALBLK", "QUECVT", "IVVALBLK", "CONVDEADLK", "PERSISTENT", "NODLCKWT", "NODLCKBLK", "EXPEDITE",
    "NOQUEUEBAST", "HEADQUE", "NOORDER", "ALTPR", "ALTCW",
)  # fmt: skip
_FLAGS = {name: getattr(modes, name) for name in _WORDS}


class Script:
    """Runs steps as ``tests.dlm.golden`` describes them; with ``notify``, every lock hears whom it blocks.

    After each step the resource is encoded and decoded: what is needed to go on must be in its state.
    """

    def __init__(self, notify: bool = False) -> None:
        self.notify = modes.NOTIFY if notify else 0
        self.fences = iter(range(1, 10_000))
        self.resource = Resource(self.fences.__next__)
        self.told: dict[str, tuple[Any, bool]] = {}

    def step(self, text: str) -> str:
        match = STEP.fullmatch(text.strip())
        assert match, text
        key = (ord(match["who"]), 1, 1)
        value = re.search(r'"(.*)"', match["rest"])
        flags = self.notify | sum(bit for name, bit in _FLAGS.items() if name in match["rest"].split())
        data = value[1].encode() if value else None
        out: list[Effect] = []
        mode = NAMES.index(match["mode"]) if match["mode"] else 0
        if match["what"] == "+":
            self.resource.lock(Lock(key, mode, flags, data), out)
        elif match["what"] == ">":
            self.resource.convert(key, mode, flags, data, 0, out)
        elif match["what"] == "*":
            self.resource.purge([key[0]], out)
        elif match["what"] == "-":
            self.resource.unlock(key, flags, data, out)
        else:
            self.resource.cancel(key, out)
        self.resource.invariants()
        self.resource = Resource.decode(self.resource.encode(), self.resource.mint, 0)
        self.resource.invariants()
        return " ".join(self._text(effect) for effect in out)

    def _text(self, effect: Effect) -> str:
        who = chr(effect.key[0])
        if effect.what is What.GRANTED:
            self.told[who] = effect.value, effect.valid
            return f"{who}:ok@{NAMES[effect.mode]}{_said(effect)}"
        if effect.what is What.BLOCKING:
            return f"{who}:bast({NAMES[effect.mode]})"
        return f"{who}:{effect.code or effect.what.name.lower()}{_said(effect)}"


def _said(effect: Effect) -> str:
    return "".join(f"+{word}" for word in ("DEMOTED", "ALTMODE") if effect.flags & getattr(modes, word))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    script = Script(notify=True)
    for number, (step, effects) in enumerate(steps(GOLDEN[name])):
        expected = " ".join(effects).replace("~", "")
        assert script.step(step) == expected, f"step {number + 1}: {step}"


@pytest.mark.parametrize("name", GOLDEN)
def test_without_callbacks_nobody_is_told_and_all_else_is_the_same(name: str) -> None:
    script = Script()
    for step, effects in steps(GOLDEN[name]):
        assert script.step(step) == " ".join(e for e in effects if "bast" not in e), step


def test_u8_a_conversion_says_anew_whether_the_lock_wants_to_be_told() -> None:
    script = Script(notify=True)
    script.step("a+PR")
    script.notify = 0
    script.step("a>PR")
    assert script.step("b+EX") == ""
    script.notify = modes.NOTIFY
    assert script.step("a>PR") == "a:ok@PR a:bast(EX)"


def test_outcome_flags_end_with_their_operation() -> None:
    """§1.2: DEMOTED, VALNOTVALID and ALTMODE are cleared at the start of each operation."""
    script = Script()
    for step in ("k+NL", "a+PR", "b+EX ALTPR VALBLK"):
        script.step(step)
    assert script.step("b>NL") == "b:ok@NL"
    script.step("z+PR")
    script.step("a>EX")
    assert script.step("z>EX CONVDEADLK") == "a:ok@EX"
    assert script.step("a>NL IVVALBLK") == "a:ok@NL z:ok@EX+DEMOTED"
    assert script.step("z>CR VALBLK") == "z:ok@CR"


@pytest.mark.parametrize("name", VALUES)
def test_value_block(name: str) -> None:
    script = Script()
    for step, who, value, valid in VALUES[name]:
        script.told.clear()
        script.step(step)
        if who:
            assert script.told[who] == (value, valid), step


def test_a_dead_node_invalidates_only_what_it_could_have_written() -> None:
    for mode, valid in (("PR", True), ("PW", False), ("EX", False)):
        script = Script()
        script.step("k+NL")
        script.step(f"a+{mode}")
        script.resource.purge([ord("a")], [])
        assert script.resource.valid is valid, mode


def test_a_conversion_to_a_stronger_mode_gets_a_new_number() -> None:
    script = Script()
    fences = []
    for step in ("a+PR", "a>PR", "a>EX", "a>CR", "a>NL", "a>CW", "a>PR"):
        script.step(step)
        fences.append(script.resource.locks[ord("a"), 1, 1].fence)
    assert fences == [1, 1, 2, 2, 2, 3, 4]
