"""Errors keep their attributes and their kin, also through a pickle."""

import pickle

import pytest

import dlm
from dlm import Mode, answers
from vsync.errors import RequestFailed

CIRCLE = (
    dlm.Waiting(b"x", "default", 1, 7, 4711, "backup", Mode.PR, Mode.EX),
    dlm.Waiting(b"y", "default", 2, 9, 88, "web", None, Mode.PW),
)
SAMPLES = [
    (dlm.LockTimeout("late", name=b"x", timeout=2.5), TimeoutError),
    (dlm.LockLost("gone", name=b"x", fence=9, reason="evicted"), dlm.LockError),
    (dlm.LockSuspended("hm", name=b"x", fence=9, reason="lease"), dlm.LockLost),
    (dlm.NotHeld("not", name=b"x", rule="E21"), RuntimeError),
    (dlm.LockBusy("busy", name=b"x", rule="E22"), RuntimeError),
    (dlm.Deadlock("circle", name=b"x", cycle=CIRCLE), dlm.LockError),
    (dlm.LockCancelled("withdrawn", name=b"x"), dlm.LockError),
    (dlm.ForkedProcess("fork"), RuntimeError),
    (dlm.NotConnected("nobody", url="unix:///nowhere"), ConnectionError),
    (dlm.NoQuorum("alone"), dlm.NotConnected),
    (dlm.InvalidRequest("name too long", code="name", rule="E2"), ValueError),
    (dlm.NotSupported("no ranges", code="not_supported", rule="E13"), dlm.InvalidRequest),
    (dlm.NoSuchSpace("not there", code="no_space", rule="E11"), dlm.InvalidRequest),
    (dlm.PermissionDenied("not yours", space="web"), PermissionError),
    (dlm.SpaceExists("there", space="web"), dlm.DLMError),
    (dlm.SpaceBusy("locks", space="web"), dlm.DLMError),
    (dlm.StaleFence("too late", token=5, newest=7), dlm.DLMError),
    (dlm.ConfigError("url"), ValueError),
]


@pytest.mark.parametrize(("error", "kin"), SAMPLES, ids=lambda e: getattr(type(e), "__name__", ""))
def test_an_error_survives_a_pickle_with_all_it_says(error: dlm.DLMError, kin: type[Exception]) -> None:
    error.add_note("seen on a Tuesday")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error) == error.args[0]
    assert vars(copy) == vars(error)
    assert copy.__notes__ == ["seen on a Tuesday"]
    assert isinstance(copy, kin)
    assert isinstance(copy, dlm.DLMError)


def test_every_public_error_is_sampled() -> None:
    public = {getattr(dlm, name) for name in dlm.__all__}
    errors = {e for e in public if isinstance(e, type) and issubclass(e, dlm.DLMError)}
    assert errors - {dlm.DLMError, dlm.LockError} == {type(sample) for sample, _ in SAMPLES}


def test_a_deadlock_tells_who_waits_for_whom() -> None:
    rows = [
        {"name": b"x", "space": "default", "node": 1, "session": 7, "pid": 4711, "program": "backup",
         "mode": "PR", "asked": "EX"},
        {"name": b"y", "space": "default", "node": 2, "session": 9, "pid": 88, "program": "web",
         "mode": None, "asked": "PW"},
    ]  # fmt: skip
    error = answers.refusal(RequestFailed("deadlock", "a circle", {"cycle": rows}), b"x")
    assert isinstance(error, dlm.Deadlock)
    assert error.cycle == CIRCLE
    assert str(error).endswith(
        "process 4711 (backup) of node 1 waits for 'x' in EX (holding PR) behind "
        "process 88 (web) of node 2, which waits for 'y' in PW behind process 4711 (backup) of node 1"
    )


@pytest.mark.parametrize(
    ("code", "kind", "rule"),
    [
        ("timeout", dlm.LockTimeout, ""),
        ("deadlock", dlm.Deadlock, ""),
        ("unknown", dlm.NotHeld, "E8"),
        ("busy", dlm.LockBusy, "E10"),
        ("invalid", dlm.InvalidRequest, "E4"),
        ("not_supported", dlm.NotSupported, "E13"),
    ],
)
def test_refusals_have_types_and_rules(code: str, kind: type[dlm.DLMError], rule: str) -> None:
    error = answers.refusal(RequestFailed(code, "no", {"rule": rule} if rule else {}), b"x", 2.5)
    assert type(error) is kind
    assert error.rule == rule
    if isinstance(error, dlm.LockTimeout):
        assert error.timeout == 2.5
