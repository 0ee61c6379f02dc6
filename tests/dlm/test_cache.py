"""Which locks a client keeps after their release, and when it gives them up (dlm/cache.py): pure."""

from __future__ import annotations

from dlm.cache import FIRST_FENCES, PATIENCE_US, Cache, Entry, Key
from dlm.modes import EX, MAX_FENCES, PR

SPACE = "default"
GOOD = (1, 1_000_000_000)


def key(name: bytes = b"x", mode: int = EX, owner: int = 1) -> Key:
    return SPACE, name, mode, owner


class Session:
    """Serials and users, and a daemon that grants whatever it is asked for."""

    def __init__(self, cache: Cache | None = None) -> None:
        self.cache = cache or Cache()
        self.serial = self.user = 0
        self.fence = 100

    def lock(self, of: Key, generation: int = 1) -> tuple[Entry, int]:
        """A new lock, in use."""
        self.serial += 1
        self.user += 1
        entry = self.cache.ask(of, self.serial, self.user)
        self.cache.granted(entry, self.fence, entry.fences, generation)
        self.fence += entry.fences
        return entry, self.user

    def idle(self, of: Key, now: int = 0) -> Entry:
        entry, user = self.lock(of)
        assert self.cache.put(entry, user, now)
        return entry

    def again(self, of: Key, lease: tuple[int, int] = GOOD, now: int = 0) -> int | None:
        """The fence of another use, if there is one without the daemon."""
        entry = self.cache.idle.get(of)
        self.user += 1
        return entry.fence if entry is not None and self.cache.take(entry, self.user, lease, now) else None


def test_each_use_has_a_number_of_its_own_until_the_block_is_used_up() -> None:
    s = Session()
    entry, user = s.lock(key())
    seen = [entry.fence]
    while s.cache.put(entry, user, 0) and (fence := s.again(key())) is not None:
        seen.append(fence)
        user = s.user
    assert seen == list(range(100, 100 + FIRST_FENCES))
    assert s.cache.make_room(SPACE, b"x") == [entry.serial]
    entry, _ = s.lock(key())
    assert entry.fence == 100 + FIRST_FENCES
    assert entry.fences == 2 * FIRST_FENCES


def test_blocks_double_up_to_a_limit() -> None:
    s = Session()
    sizes = []
    for _ in range(9):
        entry, user = s.lock(key())
        sizes.append(entry.fences)
        entry.fence = entry.end - 1
        s.cache.put(entry, user, 0)
        assert s.again(key()) is None
        s.cache.make_room(SPACE, b"x")
    assert sizes == [16, 32, 64, 128, 256, 512, 1024, MAX_FENCES, MAX_FENCES]


def test_blocks_of_which_little_is_used_become_smaller_again() -> None:
    s = Session()
    for size in (16, 32, 64):
        entry, user = s.lock(key())
        assert entry.fences == size
        entry.fence = entry.end - 1
        s.cache.put(entry, user, 0)
        assert s.again(key()) is None
        s.cache.make_room(SPACE, b"x")
    sizes = []
    for _ in range(5):
        sizes.append(s.idle(key()).fences)
        s.cache.make_room(SPACE, b"x")
    assert sizes == [128, 64, 32, 16, 16]
    entry, user = s.lock(key(b"y"))
    assert entry.fences == FIRST_FENCES, "each key has its own size"


def test_nothing_is_taken_from_a_lease_that_has_run_out_or_belongs_to_another_life() -> None:
    s = Session()
    s.idle(key())
    assert s.again(key(), (1, 50), 50) is None
    assert s.again(key(), (2, 1000), 0) is None
    assert s.again(key(), (0, 0), 0) is None
    assert s.again(key(), (1, 51), 50) is not None


def test_only_the_same_mode_and_owner_take_it_again() -> None:
    s = Session()
    s.idle(key())
    for other in (key(mode=PR), key(owner=2), key(b"y"), ("other", b"x", EX, 1)):
        assert s.again(other) is None
    assert s.again(key()) is not None


def test_an_idle_lock_that_is_called_back_is_released_at_once_and_one_in_use_at_its_release() -> None:
    s = Session()
    entry = s.idle(key())
    assert s.cache.call(entry.serial) == "idle"
    assert s.again(key()) is None
    assert s.cache.call(entry.serial) == ""
    entry, user = s.lock(key())
    assert s.cache.call(entry.serial) == "used"
    assert s.cache.call(entry.serial) == "", "the daemon is told once"
    assert not s.cache.put(entry, user, 0)
    assert not s.cache.entries


def test_a_lock_that_is_called_back_before_it_is_used_is_not_kept() -> None:
    s = Session()
    entry = s.cache.ask(key(), 1, 1)
    assert s.cache.call(1) == "used"
    s.cache.granted(entry, 5, 16, 1)
    assert not s.cache.put(entry, 1, 0)


def test_an_earlier_use_ends_nothing() -> None:
    s = Session()
    entry, first = s.lock(key())
    s.cache.put(entry, first, 0)
    assert s.again(key()) is not None
    assert not s.cache.put(entry, first, 0)
    assert not s.cache.drop(entry, first)
    assert entry.user == s.user
    assert s.cache.put(entry, s.user, 0)


def test_an_idle_lock_is_taken_once() -> None:
    s = Session()
    entry = s.idle(key())
    assert s.cache.take(entry, 7, GOOD, 0)
    assert not s.cache.take(entry, 8, GOOD, 0)


def test_of_two_locks_of_one_key_one_is_kept() -> None:
    s = Session()
    one, first = s.lock(key(mode=PR))
    two, second = s.lock(key(mode=PR))
    assert s.cache.put(one, first, 0)
    assert not s.cache.put(two, second, 0)
    assert list(s.cache.entries) == [one.serial]


def test_idle_locks_of_a_name_make_room_for_another_request_and_those_in_use_do_not() -> None:
    s = Session()
    mine, other = s.idle(key()), s.idle(key(owner=2, mode=PR))
    s.lock(key(owner=3, mode=PR))
    s.idle(key(b"y"))
    assert s.cache.make_room(SPACE, b"x") == [mine.serial, other.serial]
    assert s.cache.make_room(SPACE, b"x") == []
    assert s.again(key(b"y")) is not None


def test_those_idle_longest_go_first_when_there_are_too_many() -> None:
    s = Session(Cache(limit=2))
    entries = [s.idle(key(bytes([97 + n]))) for n in range(2)]
    assert s.cache.spare() == []
    assert s.again(key(b"a")) is not None
    s.cache.put(entries[0], s.user, 0)
    s.idle(key(b"c"))
    assert s.cache.spare() == [entries[1].serial]
    assert s.again(key(b"a")) is not None


def test_an_idle_lock_goes_after_some_seconds() -> None:
    s = Session()
    first = s.idle(key(b"a"), 0)
    second = s.idle(key(b"b"), 5)
    assert s.cache.expire(PATIENCE_US - 1) == []
    assert s.cache.expire(PATIENCE_US) == [first.serial]
    assert s.again(key(b"b"), now=6) is not None
    assert s.cache.expire(3 * PATIENCE_US) == []
    s.cache.put(second, s.user, 3 * PATIENCE_US)
    assert s.cache.expire(4 * PATIENCE_US) == [second.serial]


def test_what_is_lost_is_not_there_any_more() -> None:
    s = Session()
    idle = s.idle(key(b"a"))
    used, user = s.lock(key(b"b"))
    for entry in (idle, used):
        s.cache.lost(entry.serial)
    s.cache.lost(77)
    assert s.again(key(b"a")) is None
    assert not s.cache.put(used, user, 0)
    assert not s.cache.entries


def test_nothing_of_a_lockspace_that_is_closed_is_kept() -> None:
    s = Session()
    other = s.idle(key())
    idle = s.idle(("other", b"x", EX, 1))
    used, user = s.lock(("other", b"y", EX, 1))
    assert s.cache.leave("other") == [idle.serial]
    assert not s.cache.put(used, user, 0)
    assert list(s.cache.entries) == [other.serial]


def test_a_lockspace_is_given_back_and_a_session_ends() -> None:
    s = Session()
    here, there = s.idle(key()), s.idle(("other", b"x", EX, 1))
    assert s.cache.clear("other") == [there.serial]
    used, user = s.lock(key(b"y"))
    assert s.cache.clear() == [here.serial]
    s.cache.close()
    assert not s.cache.put(used, user, 0)
    assert not s.cache.entries
