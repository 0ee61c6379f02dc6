"""What must hold of a lock table after every event. For tests: everything is looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlm import multi
from dlm.names import Form, Name

if TYPE_CHECKING:
    from dlm.table import Table

__all__ = ["check"]


def check(table: Table) -> None:
    """Raises ``AssertionError``, with a text."""
    names = table.names
    table.waits.invariants(name.resource for name in names.values() if name.form is Form.SHARED)
    table.failures.invariants()
    counted = [sum(name.form is form for name in names.values()) for form in Form]
    assert counted == table.forms, "the forms of names are miscounted"
    handovers = {key for key, name in names.items() if name.form is Form.HANDOVER}
    assert handovers == set(table.handovers), "names in handover are miscounted"
    for key, name in names.items():
        if name.era != table.era and table.dues:
            continue  # it looks as it did before what is due
        assert table.spaces.refuses(key) != "no_space", f"{key!r}: in no lockspace"
        _forms(table, key, name)
        if name.resource is not None:
            name.resource.invariants()
            parts = sum(bool(lock.batch) for lock in name.resource.waiting)
            assert name.resource.grouped == parts, f"{key!r}: parts of multi-locks are miscounted"
            assert not multi.grantable(table, key), f"{key!r}: a multi-lock could be granted"
            for node in name.resource.homes:
                assert node in table.lives, f"{key!r}: a lock of an ended life"
                assert name.form is Form.SHARED or node == name.owner, f"{key!r}: private to another"


def _forms(table: Table, key: bytes, name: Name) -> None:
    if name.form is Form.SHARED:
        assert name.resource is not None, f"{key!r}: shared without contents"
        assert bool(name.resource.locks) != (key in table.vacant), f"{key!r}: wrongly taken for vacant"
        assert not name.waiting, f"{key!r}: shared with a waiting list"
    else:
        mine = name.form is Form.PRIVATE and name.owner == table.me
        assert (name.resource is not None) == mine, f"{key!r}: contents at the wrong node"
        assert name.owner in table.lives, f"{key!r}: owned by an ended life"
