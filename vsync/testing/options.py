"""What one run is made of, drawn from its seed.

Swarm style: every kind of fault is switched on or off by a coin of its own, so that a run with heavy loss
is not always also a run with crashes. The same seed and number of nodes give the same options for ever.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from random import Random

from vsync.types import QuorumConfig, Timing

__all__ = ["LinkOptions", "Options", "draw", "quiet", "scaled"]

SECOND = 1_000_000


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """How frames travel. Times in µs, the others are probabilities per frame."""

    delay_low: int = 500
    delay_high: int = 1_500
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0  #: share of frames that take a much longer way and are overtaken
    reorder_delay: int = 20_000
    cut_in_flight: bool = False  #: a cut also loses the frames that are under way


@dataclass(frozen=True, slots=True)
class Options:
    """Everything about a run that is not an accident of the run itself. Weights are relative; 0 = never."""

    seed: int = 0
    nodes: int = 5
    chaos: int = 4 * SECOND  #: µs of trouble before everything is healed
    timing: Timing = field(default_factory=Timing)
    links: LinkOptions = field(default_factory=LinkOptions)
    drift_ppm: int = 0  #: each node's clock runs up to so much too fast or too slow
    fault_interval: int = 300_000  #: mean time between two actions of the nemesis
    crash: int = 0
    leave: int = 0
    partition: int = 0
    one_way: int = 0
    pause: int = 0
    herd: int = 0  #: all nodes die and start again together
    slow: int = 0  #: a node takes what it receives late
    nested: int = 0  #: something breaks at one frame of one kind in one state (``vsync.testing.rules``)
    rumour: int = 0  #: a transport holds a living process for dead
    mtu: int = 0  #: links lose what is larger than so many bytes
    frozen: float = 0.0  #: share of pauses during which the node's clock stands still, too
    lost_disk: float = 0.0  #: share of restarts that find an empty disk
    foreign: int = 0  #: a node starts with the disk of another cluster (C7), until somebody notices
    evidence: float = 0.0  #: chance that a transport sees a peer die
    fast_restart: float = 0.5  #: share of restarts that are quicker than any timeout
    start_spread: int = 0  #: the nodes start within so many µs
    send_interval: int = 20_000  #: mean time between two submissions of one node
    big: float = 0.0  #: share of messages that are cut in pieces
    safe: float = 0.0  #: share of messages that are SAFE
    chat: float = 0.0  #: share of messages after whose delivery their sender sends the next one, again and again
    packet_bytes: int = 60_000  #: small ones give many packets: recoveries of more than a visit, more pieces
    accelerated: int = 0  #: packets sent behind the token
    send_queue: int = 4_096  #: messages that may wait for the token: small ones give back-pressure
    quorum: QuorumConfig = field(default_factory=QuorumConfig)
    votes: tuple[int, ...] = ()  #: of node 1, 2, ..; empty: each has one
    bootstrap: bool = False  #: an operator makes the first view that can be primary so, before all nodes are there
    group_interval: int = 0  #: mean time between two actions of the members of process groups; 0: there are none
    nodes_interval: int = 0  #: mean time between two changes of the set of nodes; 0: it stays as it is

    def lines(self) -> list[str]:
        """The options for people, one ``name=value`` each; defaults are printed too."""
        flat = asdict(self)
        flat.update({f"links.{k}": v for k, v in flat.pop("links").items()})
        flat.update({f"quorum.{k}": v for k, v in flat.pop("quorum").items()})
        flat.update({f"timing.{k}": v for k, v in flat.pop("timing").items()})
        return [f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in flat.items()]


def scaled(factor: float) -> Timing:
    """The default timers, all multiplied by ``factor``: shorter ones give more view changes per second."""
    base = Timing()
    names = [name for name in Timing.__dataclass_fields__ if isinstance(getattr(base, name), int)]
    return Timing(**{name: int(getattr(base, name) * factor) for name in names})


def quiet(seed: int = 0, nodes: int = 5, timing: Timing | None = None) -> Options:
    """No faults except those that a test asks for: what ``SimCluster`` uses when not told otherwise."""
    return Options(seed=seed, nodes=nodes, timing=timing or Timing())


def draw(seed: int, nodes: int, chaos: int | None = None) -> Options:
    """The options of seed ``seed``; ``chaos`` in µs overrides the drawn length."""
    rng = Random(f"options/{seed}/{nodes}")
    factor = rng.choice([0.1, 0.2, 0.2, 0.5, 1.0])
    hop = int(rng.choice([500, 2_000, 5_000, 8_000]) * max(factor, 0.2))

    def sometimes(share: float, value: float) -> float:
        return value if rng.random() < share else 0.0

    links = LinkOptions(
        delay_low=hop // 2,
        delay_high=hop * rng.choice([1, 2, 4]),
        loss=sometimes(0.5, rng.choice([0.005, 0.02, 0.1])),
        duplicate=sometimes(0.4, rng.choice([0.01, 0.1])),
        reorder=sometimes(0.4, rng.choice([0.01, 0.1])),
        reorder_delay=hop * rng.choice([3, 20, 100]),
        cut_in_flight=rng.random() < 0.5,
    )
    weights = {
        name: rng.choice([1, 2, 4]) if rng.random() < 0.55 else 0
        for name in ("crash", "leave", "partition", "one_way", "pause")
    }
    if not any(weights.values()):
        weights["crash"] = weights["partition"] = 1
    drawn = int(rng.choice([2, 4, 6]) * SECOND * max(factor, 0.25) * 2)
    quorum, votes, bootstrap = _quorum(seed, nodes)
    lingers, chat = _lingering(seed, nodes, int(Timing().hold * factor))
    return Options(
        seed=seed,
        nodes=nodes,
        chaos=chaos if chaos is not None else drawn,
        timing=replace(scaled(factor), linger=lingers),
        links=links,
        drift_ppm=rng.choice([0, 0, 100, 10_000]),
        fault_interval=int(rng.choice([0.15, 0.4, 1.0, 2.0]) * SECOND * factor),
        fast_restart=rng.choice([0.0, 0.5, 0.9]),
        start_spread=int(rng.choice([0, 0.2, 1.5]) * SECOND * factor),
        send_interval=drawn // rng.choice([15, 60, 150, 300]),
        big=sometimes(0.4, rng.choice([0.02, 0.1])),
        safe=sometimes(0.5, rng.choice([0.1, 0.5])),
        chat=chat,
        packet_bytes=rng.choice([60_000, 60_000, 1_400, 100]),
        accelerated=rng.choice([0, 0, 4, 20]),
        send_queue=rng.choice([4_096, 4_096, 4_096, 20]),
        group_interval=int(sometimes(0.4, drawn // rng.choice([60, 150, 300]))),
        lost_disk=sometimes(0.25, rng.choice([0.1, 0.5])),
        evidence=rng.choice([0.0, 0.5, 1.0]),
        frozen=sometimes(0.3, 0.5),
        herd=rng.choice([1, 2]) if rng.random() < 0.25 else 0,
        slow=rng.choice([1, 2, 4]) if rng.random() < 0.35 else 0,
        nested=rng.choice([2, 4, 8]) if rng.random() < 0.6 else 0,
        rumour=rng.choice([1, 2]) if rng.random() < 0.25 else 0,
        mtu=rng.choice([1, 2, 4]) if rng.random() < 0.25 else 0,
        quorum=quorum,
        votes=votes,
        bootstrap=bootstrap,
        foreign=0 if (changes := _changes(seed, nodes)) else _foreign(seed, nodes),
        nodes_interval=int(changes * SECOND * factor),
        **weights,
    )


def _lingering(seed: int, nodes: int, hold: int) -> tuple[int, float]:
    """How long a token lingers, with hops of milliseconds: not at all, as by default, or for many messages; and how
    much traffic there is for which it does.
    """
    rng = Random(f"options/linger/{seed}/{nodes}")
    return rng.choice([0, min(1_000, hold // 4), hold // 4]), rng.choice([0.0, 0.02, 0.2])


def _changes(seed: int, nodes: int) -> float:
    """How often the set of nodes changes, in token timeouts. With foreign disks it would be two kinds of wrong."""
    rng = Random(f"options/nodes/{seed}/{nodes}")
    return rng.choice([0.5, 1.0, 3.0]) if rng.random() < 0.15 else 0.0


def _foreign(seed: int, nodes: int) -> int:
    rng = Random(f"options/foreign/{seed}/{nodes}")
    return rng.choice([1, 2]) if rng.random() < 0.15 else 0


def _quorum(seed: int, nodes: int) -> tuple[QuorumConfig, tuple[int, ...], bool]:
    """When a view is primary. A policy that is not safe is not drawn: nothing is promised under it."""
    rng = Random(f"options/quorum/{seed}/{nodes}")
    votes = (1,) * nodes
    if rng.random() < 0.2:
        votes = tuple(rng.choice([0, 1, 1, 2]) for _ in range(nodes))
    quorum = QuorumConfig(
        policy="last_man_standing" if rng.random() < 0.25 else "majority",
        wait_for_all=rng.random() < 0.15,
        auto_tie_breaker=rng.random() < 0.25,
    )
    return quorum, votes if any(votes) else (1,) * nodes, rng.random() < 0.4
