"""What is remembered of a session is forgotten when it ends, however the look-up and the end overlap."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from relay.accounts.session_cache import SessionCache

ACCOUNTS, DEVICES, TOKENS = (b"a" * 16, b"b" * 16), (b"d" * 32, b"e" * 32), (b"one", b"two")
places = st.tuples(st.sampled_from(ACCOUNTS), st.sampled_from(DEVICES))


class Sessions(RuleBasedStateMachine):
    """A database that knows the truth, look-ups that take their time, and the cache between."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = SessionCache(most=3)
        self.truth: dict[tuple[bytes, bytes], bytes] = {}
        self.under_way: list[tuple[tuple[bytes, bytes], bytes, int, int]] = []
        self.now = 0

    @rule(place=places, token=st.sampled_from(TOKENS))
    def open(self, place: tuple[bytes, bytes], token: bytes) -> None:
        self.truth[place] = token
        self.cache.forget(*place)

    @rule(place=places)
    def end(self, place: tuple[bytes, bytes]) -> None:
        self.truth.pop(place, None)
        self.cache.forget(*place)

    @rule(account=st.sampled_from(ACCOUNTS))
    def end_all(self, account: bytes) -> None:
        self.truth = {place: token for place, token in self.truth.items() if place[0] != account}
        self.cache.forget_account(account)

    @rule(place=places)
    def look_up(self, place: tuple[bytes, bytes]) -> None:
        if place in self.truth:
            self.under_way.append((place, self.truth[place], self.now, self.cache.generation))

    @rule()
    def found(self) -> None:
        for place, token, now, generation in self.under_way:
            self.cache.keep(*place, token, now=now, generation=generation)
        self.under_way = []

    @rule()
    def tick(self) -> None:
        self.now += 1

    @invariant()
    def only_the_truth_is_told(self) -> None:
        held = 0
        for account in ACCOUNTS:
            for device in DEVICES:
                for token in TOKENS:
                    if self.cache.holds(account, device, token, self.now):
                        held += 1
                        assert self.truth.get((account, device)) == token
                    assert not self.cache.holds(account, device, token, self.now + 1)
        assert held <= 3


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_what_ends_during_a_look_up_is_not_remembered_by_it() -> None:
    for end in (lambda cache: cache.forget(ACCOUNTS[0], DEVICES[0]), lambda cache: cache.forget_account(ACCOUNTS[0])):
        cache = SessionCache()
        generation = cache.generation
        end(cache)
        cache.keep(ACCOUNTS[0], DEVICES[0], b"one", now=5, generation=generation)
        assert not cache.holds(ACCOUNTS[0], DEVICES[0], b"one", 5)


def test_a_session_is_remembered_for_its_second() -> None:
    cache = SessionCache()
    cache.keep(ACCOUNTS[0], DEVICES[0], b"one", now=5, generation=cache.generation)
    assert cache.holds(ACCOUNTS[0], DEVICES[0], b"one", 5)
    assert not cache.holds(ACCOUNTS[0], DEVICES[0], b"two", 5)
    assert not cache.holds(ACCOUNTS[0], DEVICES[1], b"one", 5)
    assert not cache.holds(ACCOUNTS[0], DEVICES[0], b"one", 6)
