"""Errors keep their attributes and their kin, also through a pickle."""

import pickle

import pytest

import dlm

SAMPLES = [
    (dlm.LockTimeout("late", name=b"x", timeout=2.5), TimeoutError),
    (dlm.LockLost("gone", name=b"x", fence=9, reason="evicted"), dlm.LockError),
    (dlm.LockSuspended("hm", name=b"x", fence=9, reason="lease"), dlm.LockLost),
    (dlm.NotHeld("not", name=b"x"), RuntimeError),
    (dlm.LockBusy("busy", name=b"x"), RuntimeError),
    (dlm.Deadlock("circle", name=b"x", cycle=(b"x", b"y")), dlm.LockError),
    (dlm.LockCancelled("withdrawn", name=b"x"), dlm.LockError),
    (dlm.ForkedProcess("fork"), RuntimeError),
    (dlm.NotConnected("nobody", url="unix:///nowhere"), ConnectionError),
    (dlm.NoQuorum("alone"), dlm.NotConnected),
    (dlm.InvalidRequest("name too long", code="name", rule="E2"), ValueError),
    (dlm.NotSupported("no ranges", code="not_supported", rule="E13"), dlm.InvalidRequest),
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
