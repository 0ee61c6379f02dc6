"""Groups at their limits: what cannot be refused waits, what would not fit is refused."""

from __future__ import annotations

from tests.live.cores import Cores


def group_pushes(cores: Cores, node: int, session: int, kind: str) -> list[dict]:
    """What a session was pushed, oldest first."""
    return [p.data for n, p in cores.pushes if (n, p.session, p.service, p.kind) == (node, session, "group", kind)]


def test_a_member_that_ends_while_the_send_queue_is_full_leaves_later() -> None:
    cores = Cores(2, send_queue=16)
    cores.open(1, 2)
    for node, session in ((1, 1), (1, 2), (2, 1)):
        assert cores.call(node, "group", "join", session, group="g") == {}
    one = cores[1]
    refused = []
    for rid in range(1000, 1100):  # nothing is carried out meanwhile, so the queue fills
        one.request(1, rid, "group", "send", {"group": "g", "data": b"x"}, cores.now)
        refused += [o for o in one.take_outputs() if getattr(o, "ok", True) is False]
    assert {o.data["code"] for o in refused} == {"backpressure"}
    one.close_session(1, cores.now)
    cores.frames.clear()
    cores.run(3_000_000)
    for node, session in ((1, 2), (2, 1)):
        last = group_pushes(cores, node, session, "view")[-1]
        assert [(p["node"], p["session"], p["reason"]) for p in last["left"]] == [(1, 1, "procdown")]
        assert len(last["members"]) == 2


def test_memberships_of_a_node_fit_into_one_message() -> None:
    cores = Cores(2)
    names = [f"{number:05}" + "x" * 123 for number in range(8000)]
    refused = None
    for name in names:
        rid = cores.post(1, "group", "join", group=name)
        answer = cores.answers.get((1, 1, rid))
        if answer is not None and not answer.ok:
            refused = answer.data
            break
    assert refused is not None
    assert refused["code"] == "too_many"
    cores.run(100_000)
    rows = cores[1].groups._local()
    assert len(rows) > 5000
    cores[1].submit(cores[1].groups._encode(4, "", 0, rows), urgent=True)  # what a merge would send: it fits
