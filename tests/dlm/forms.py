"""Names a, b and c in whatever form a test wants them."""

from __future__ import annotations

from dlm.messages import key_of
from dlm.modes import NL
from tests.dlm.bus import Bus

A, B, C = b"a", b"b", b"c"


def form(bus: Bus, name: bytes, node: int = 1) -> str:
    """The form of a name and its owner, as a node has it."""
    found = bus[node].table.names.get(key_of("default", name))
    return "unknown" if found is None else f"{found.form.name.lower()}{found.owner or ''}"


def waiting(bus: Bus, name: bytes, node: int = 1) -> list[tuple[int, int]]:
    """(node, handle) of who waits for a name."""
    resource = bus[node].table.names[key_of("default", name)].resource
    assert resource is not None
    return [(lock.key[0], lock.key[2]) for lock in resource.waiting]


def share(bus: Bus, *names: bytes) -> None:
    """Make these names shared, for good: two nodes hold NL locks on each."""
    for node in (1, 2):
        for name in names:
            bus.lock(node, name, NL, session=2)
        bus.run()
    assert {form(bus, name) for name in names} == {"shared"}


def own(bus: Bus, node: int, *names: bytes) -> None:
    """Make these names private to a node."""
    taken = [bus.lock(node, name, session=2)[1] for name in names]
    bus.run()
    for h in taken:
        bus.call(node, "unlock", 2, h=h)
    bus.run()


FORMS = ("unknown", "mine", "theirs", "shared", "handover")


def prepare(bus: Bus, name: bytes, what: str) -> None:
    """Bring a name into this form, as node 1 sees it; nobody is in the way."""
    if what == "shared":
        share(bus, name)
    elif what in ("mine", "theirs", "handover"):
        own(bus, 1 if what == "mine" else 2, name)
