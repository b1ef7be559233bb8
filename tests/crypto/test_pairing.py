"""Pairing: the same code pairs two devices on one channel, anything else pairs nobody, and a code is tried once."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.crypto.pairing import (
    CODE_ENTROPY,
    CODE_LIFETIME,
    MAX_BURNT,
    PairingCode,
    PairingDesk,
    PairingMachine,
    PairingSide,
    new_code,
    parse_code,
)
from p2psync.crypto.words import WORDS
from p2psync.errors import AuthenticationError, InputError, StateError

CODE = PairingCode(7, ("amber", "kayak"))
ALICE, BOB, EVE = b"A" * 32, b"B" * 32, b"E" * 32
CHANNEL = b"C" * 32


def host(code: PairingCode = CODE, channel: bytes = CHANNEL, me: bytes = ALICE, them: bytes = BOB) -> PairingMachine:
    return PairingMachine(
        PairingSide.HOST,
        code,
        handshake_hash=channel,
        my_device_id=me,
        their_device_id=them,
        entropy=bytes(32),
    )


def guest(code: PairingCode = CODE, channel: bytes = CHANNEL, me: bytes = BOB, them: bytes = ALICE) -> PairingMachine:
    return PairingMachine(
        PairingSide.GUEST,
        code,
        handshake_hash=channel,
        my_device_id=me,
        their_device_id=them,
        entropy=bytes(range(32)),
    )


def run(inviting: PairingMachine, typing: PairingMachine) -> list[bytes]:
    messages, machines, turn = [], (inviting, typing), 0
    message = typing.start()
    while message is not None:
        messages.append(message)
        message = machines[turn].receive(message)
        turn = 1 - turn
    return messages


# ── words and codes ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_words_are_short_distinct_and_many() -> None:
    assert len(WORDS) == len(set(WORDS)) == 1024
    assert list(WORDS) == sorted(WORDS)
    assert all(word.isascii() and word.isalpha() and word.islower() and 3 <= len(word) <= 7 for word in WORDS)


def test_no_single_slip_turns_a_word_into_another() -> None:
    one_letter_less = {word: {word[:i] + word[i + 1 :] for i in range(len(word))} for word in WORDS}
    one_letter_open = {word: {word[:i] + "?" + word[i + 1 :] for i in range(len(word))} for word in WORDS}
    for a, b in combinations(WORDS, 2):
        assert a not in one_letter_less[b]
        assert b not in one_letter_less[a]
        assert not one_letter_open[a] & one_letter_open[b]


@given(st.binary(min_size=CODE_ENTROPY, max_size=CODE_ENTROPY))
def test_codes_are_read_as_people_type_them(entropy: bytes) -> None:
    code = new_code(entropy)
    assert 1 <= code.nameplate <= 999
    assert parse_code(str(code)) == code
    assert parse_code(f"  {str(code).upper().replace('-', '  ')}\n") == code
    assert repr(code) == f"PairingCode(nameplate={code.nameplate})"


def test_every_word_and_nameplate_can_occur() -> None:
    codes = [new_code((i * 2**60 // 7 + i).to_bytes(CODE_ENTROPY, "big")) for i in range(30_000)]
    assert {code.words[0] for code in codes} == set(WORDS)
    assert len({code.nameplate for code in codes}) == 999


@pytest.mark.parametrize(
    ("text", "help_"),
    [
        ("", "a number and two words"),
        ("7-amber", "a number and two words"),
        ("7-amber-kayak-kayak", "a number and two words"),
        ("amber-kayak-7", "starts with a number"),
        ("0-amber-kayak", "from 1 to 999"),
        ("1000-amber-kayak", "from 1 to 999"),
        ("²-amber-kayak", "starts with a number"),
        ("7-ambr-kayak", "did you mean amber"),
        ("7-amber-qqqqqq", "look again"),
        ("7-" + "x" * 5000, "a number and two words"),
    ],
)
def test_malformed_codes_get_help(text: str, help_: str) -> None:
    with pytest.raises(InputError, match=help_):
        parse_code(text)


# ── the exchange ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_same_code_pairs() -> None:
    inviting, typing = host(), guest()
    assert [len(message) for message in run(inviting, typing)] == [33, 33, 32, 32]
    assert inviting.outcome is not None
    assert inviting.outcome == typing.outcome
    assert all(word in WORDS for word in inviting.outcome.comparison.split())


@pytest.mark.parametrize(
    "other",
    [
        guest(PairingCode(7, ("amber", "kale"))),
        guest(PairingCode(8, ("amber", "kayak"))),
        guest(PairingCode(7, ("kayak", "amber"))),
        guest(channel=b"D" * 32),
        guest(me=EVE),
        guest(them=EVE),
    ],
)
def test_another_code_channel_or_device_pairs_nobody(other: PairingMachine) -> None:
    inviting = host()
    with pytest.raises(AuthenticationError, match="pairing failed"):
        run(inviting, other)
    assert inviting.outcome is None
    assert other.outcome is None


def test_a_device_in_the_middle_pairs_nobody() -> None:
    """Eve relays the exchange between two channels of her own: the proofs are bound to channel and devices."""
    inviting, typing = host(channel=b"1" * 32, them=EVE), guest(channel=b"2" * 32, them=EVE)
    with pytest.raises(AuthenticationError):
        run(inviting, typing)


def test_the_host_gives_no_proof_to_a_wrong_guess() -> None:
    inviting, guessing = host(), guest(PairingCode(7, ("amber", "kale")))
    element = guessing.start()
    assert element is not None
    answer = inviting.receive(element)
    assert answer is not None
    proof = guessing.receive(answer)
    assert proof is not None
    for _ in range(2):
        with pytest.raises(AuthenticationError):
            inviting.receive(proof)


def test_every_flipped_byte_is_found() -> None:
    genuine = run(host(), guest())
    for number, message in enumerate(genuine):
        for i in {0, 1, len(message) // 2, len(message) - 1}:
            machines, turn = (host(), guest()), 0
            machines[1].start()
            for earlier in genuine[:number]:
                machines[turn].receive(earlier)
                turn = 1 - turn
            damaged = bytearray(message)
            damaged[i] ^= 1
            with pytest.raises(AuthenticationError):
                deliver(machines[turn], machines[1 - turn], bytes(damaged))
            assert machines[turn].outcome is None


def deliver(receiver: PairingMachine, sender: PairingMachine, damaged: bytes) -> None:
    """A damaged element may still be one of the group: then the proofs that follow do not match."""
    message: bytes | None = damaged
    while message is not None:
        message = receiver.receive(message)
        receiver, sender = sender, receiver


def test_a_failed_try_cannot_be_mended() -> None:
    inviting, genuine = host(), run(host(), guest())
    inviting.receive(genuine[0])
    for proof in (bytes(32), genuine[2]):
        with pytest.raises(AuthenticationError):
            inviting.receive(proof)
    assert inviting.outcome is None


def test_a_reflected_message_is_refused() -> None:
    typing = guest()
    element = typing.start()
    assert element is not None
    with pytest.raises(AuthenticationError):
        typing.receive(b"A" + element[1:])


@settings(max_examples=30)
@given(st.binary(max_size=40) | st.binary(min_size=32, max_size=32).map(lambda b: b"B" + b))
def test_rubbish_is_refused(rubbish: bytes) -> None:
    inviting = host()
    with pytest.raises(AuthenticationError):
        _ = [inviting.receive(rubbish), inviting.receive(rubbish)]
    with pytest.raises(AuthenticationError):
        inviting.receive(b"")


@pytest.mark.parametrize("element", [bytes(32), b"\x01" + bytes(31), b"\xff" * 32, b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_elements_outside_the_group_are_refused(element: bytes) -> None:
    with pytest.raises(AuthenticationError):
        host().receive(b"B" + element)


def test_entropy_is_used_and_checked() -> None:
    assert host().receive(run(host(), guest())[0]) == run(host(), guest())[1]
    with pytest.raises(InputError):
        PairingMachine(
            PairingSide.HOST, CODE, handshake_hash=CHANNEL, my_device_id=ALICE, their_device_id=BOB, entropy=b""
        )
    with pytest.raises(InputError):
        new_code(b"")


# ── the desk ────────────────────────────────────────────────────────────────────────────────────────────────────────
def codes(count: int) -> list[PairingCode]:
    return [PairingCode(n, CODE.words) for n in range(1, count + 1)]


def test_a_code_can_be_tried_once() -> None:
    desk = PairingDesk()
    desk.open(CODE, 0.0)
    assert desk.live(1.0) == (7,)
    assert desk.begin(7, 1.0)[1] == CODE
    assert desk.live(1.0) == ()
    for nameplate in (7, 8):
        with pytest.raises(AuthenticationError):
            desk.begin(nameplate, 2.0)


def test_a_code_expires() -> None:
    desk = PairingDesk()
    desk.open(CODE, 0.0)
    assert desk.live(CODE_LIFETIME - 1) == (7,)
    with pytest.raises(AuthenticationError):
        desk.begin(7, CODE_LIFETIME)
    desk.open(CODE, CODE_LIFETIME)


def test_a_code_can_be_cancelled() -> None:
    desk = PairingDesk()
    desk.open(CODE, 0.0)
    with pytest.raises(StateError, match="still open"):
        desk.open(CODE, 1.0)
    desk.cancel(7)
    desk.cancel(7)
    with pytest.raises(AuthenticationError):
        desk.begin(7, 1.0)
    desk.open(CODE, 1.0)


def test_failures_close_the_desk_for_a_while_and_successes_do_not() -> None:
    desk = PairingDesk()
    for i in range(10):
        desk.open(CODE, float(i))
        desk.succeeded(desk.begin(7, float(i))[0])
    for i in range(MAX_BURNT):
        desk.open(CODE, 100.0 + i)
        desk.begin(7, 100.0 + i)
    with pytest.raises(StateError, match="Try again in 597 s"):
        desk.open(CODE, 104.0)
    desk.open(CODE, 100.0 + CODE_LIFETIME)


def test_codes_opened_in_advance_do_not_beat_the_limit() -> None:
    desk = PairingDesk()
    for code in codes(3):
        desk.open(code, 0.0)
    with pytest.raises(StateError, match="still open"):
        desk.open(PairingCode(4, CODE.words), 0.0)
    desk.begin(1, 1.0)
    desk.open(PairingCode(4, CODE.words), 1.0)
    desk.begin(2, 2.0)
    desk.begin(3, 3.0)
    assert desk.live(4.0) == (4,)
    with pytest.raises(AuthenticationError):
        desk.begin(4, 4.0)


@given(
    st.lists(st.tuples(st.sampled_from(["open", "begin"]), st.integers(1, 5), st.floats(0, 200)), max_size=60),
)
def test_no_schedule_of_guesses_beats_the_limit(actions: list[tuple[str, int, float]]) -> None:
    desk, now, guesses = PairingDesk(), 0.0, []
    for action, nameplate, pause in actions:
        now += pause
        try:
            if action == "open":
                desk.open(PairingCode(nameplate, CODE.words), now)
            else:
                desk.begin(nameplate, now)
                guesses.append(now)
        except (AuthenticationError, StateError):
            continue
    for moment in guesses:
        assert sum(moment <= other < moment + CODE_LIFETIME for other in guesses) <= MAX_BURNT
