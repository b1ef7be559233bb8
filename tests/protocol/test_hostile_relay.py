"""What a relay can do to a mailbox: every attack is seen, and a relay that does nothing wrong is never accused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.crypto.identity import DeviceKeys
from p2psync.errors import AuthenticationError, InputError
from p2psync.protocol.chains import (
    STALE_AFTER_S,
    Behind,
    Chains,
    Decision,
    Duplicate,
    Finding,
    Fork,
    Fresh,
    Frozen,
    Gap,
    OwnRollback,
    Regressed,
    RolledBack,
    Withheld,
    decode_fork_proof,
)
from p2psync.protocol.mailbox import (
    ChainKey,
    Entry,
    EntryKind,
    Head,
    Header,
    decode_entry,
    decode_head,
    next_slot,
    sorted_heads,
)

FOLDER = b"f" * 16
KEYS = tuple(DeviceKeys(bytes([n + 1]) * 64) for n in range(3))
DAY = 86400


class Conflict(Exception):  # noqa: N818
    """The relay's answer to an entry that does not follow its chain: its newest header."""

    def __init__(self, head: Header | None) -> None:
        self.head = head


@dataclass
class Relay:
    """What an honest relay does."""

    feed: list[bytes] = field(default_factory=list)
    heads: dict[ChainKey, Header] = field(default_factory=dict)

    def append(self, data: bytes) -> None:
        header = decode_entry(data).header
        header.verify()
        last = self.heads.get(header.key)
        if data in self.feed:
            return
        if (header.seq, header.prev) != ((last.seq + 1, last.hash) if last else (1, bytes(32))):
            raise Conflict(last)
        self.heads[header.key] = header
        self.feed.append(data)

    def read(self, after: int, limit: int) -> list[bytes]:
        return self.feed[after : after + limit]

    def last(self) -> int:
        return len(self.feed)


class Device:
    """A member that follows the rules; everything it finds stands in `findings`. What it stores is what it holds."""

    def __init__(self, keys: DeviceKeys) -> None:
        self.keys = keys
        self.lives = 0
        self.taken: list[Header] = []
        self.findings: list[Finding | Decision] = []
        self.refused = 0
        self.begin()

    def begin(self) -> None:
        """A new index: nothing is known, a new chain begins."""
        self.lives += 1
        self.key = ChainKey(self.keys.card.signing_key, self.lives.to_bytes(8, "big"))
        self.chains = Chains(FOLDER, self.key)
        self.outbox: list[Entry] = []
        self.cursor = self.counter = 0
        self.since = len(self.taken)

    def write(self, text: bytes, kind: int = EntryKind.RECORDS) -> None:
        last = self.chains.unsent[-1] if self.chains.unsent else self.chains.tips.get(self.key)
        entry = next_slot(FOLDER, self.key, last, kind, b"k" * 16).sign(self.keys, text)
        self.chains.unsent.append(entry.header)
        self.outbox.append(entry)

    def head(self, now: int) -> Head:
        self.counter += 1
        return Head(self.counter, now, sorted_heads(self.chains.tips.values()))

    def state(self, now: int) -> None:
        self.write(self.head(now).encode(), EntryKind.HEAD)

    def post(self, relay: Relay, *, answered: bool = True) -> None:
        try:
            for entry in self.outbox:
                relay.append(entry.encoded)
        except Conflict as conflict:
            own = {key: tip for key, tip in self.chains.tips.items() if key == self.key}
            heads = [conflict.head] if conflict.head else []
            self.note(self.chains.judge_relay(heads, asked_with=own, caught_up=False))
            return
        if answered:
            for entry in self.outbox:
                self.chains.apply(self.chains.judge(entry.header))
            self.outbox.clear()

    def read(self, relay: Relay, limit: int = 1000) -> None:
        """One page. Nothing behind a gap or an entry that nobody signed is taken in."""
        for data in relay.read(self.cursor, limit):
            try:
                entry = decode_entry(data)
                decision = self.chains.judge(entry.header)
            except (InputError, AuthenticationError):
                self.refused += 1
                return
            if isinstance(decision, Gap):
                self.findings.append(decision)
                self.cursor = 0
                return
            self.take(entry, decision)
            if isinstance(decision, OwnRollback):
                return
            self.cursor += 1

    def take(self, entry: Entry, decision: Decision) -> None:
        self.chains.apply(decision)
        if not isinstance(decision, Fresh):
            self.findings += [decision] if not isinstance(decision, Duplicate) else []
            return
        self.taken.append(entry.header)
        if entry.header.kind == EntryKind.HEAD:
            head = decode_head(entry.body, FOLDER)
            self.note(self.chains.judge_heads(entry.header.key, head, caught_up=True))
            self.chains.heard(entry.header.key, head)

    def hear(self, other: Device, now: int, relay: Relay) -> None:
        """Another member's statement by another way; then the relay's feed to its end."""
        head = other.head(now)
        self.note(self.chains.judge_heads(other.key, head, caught_up=False, newest=True))
        self.read(relay)
        if not self.found(OwnRollback):
            self.note(self.chains.judge_heads(other.key, head, caught_up=True, newest=True))
        self.chains.heard(other.key, head)

    def ask(self, relay: Relay) -> None:
        """The relay's own list; then its feed to its end."""
        asked_with, heads = dict(self.chains.tips), list(relay.heads.values())
        self.post(relay)  # what happens while the list is under way is no rollback
        self.note(self.chains.judge_relay(heads, asked_with=asked_with, caught_up=False))
        self.read(relay)
        if not self.found(OwnRollback):
            self.note(self.chains.judge_relay(heads, asked_with=asked_with, caught_up=True))

    def note(self, findings: list[Finding]) -> None:
        for finding in findings:
            self.chains.apply(finding)
        self.findings += [finding for finding in findings if not isinstance(finding, Behind)]

    def found(self, kind: type) -> bool:
        return any(isinstance(finding, kind) for finding in self.findings)


STEPS = ["write", "write", "state", "post", "lost", "read", "page", "hear", "ask", "reset"]
steps = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 2), st.integers(0, 2)), min_size=10, max_size=25)
examples = settings(max_examples=40, deadline=None)


def run(relay: Relay, devices: list[Device], script: list[tuple[str, int, int]]) -> None:
    for number, (step, who, whom) in enumerate(script):
        device, now = devices[who], number * 3600
        match step:
            case "write":
                device.write(b"text %d" % number)
            case "state":
                device.state(now)
            case "post" | "lost":
                device.post(relay, answered=step == "post")
            case "read":
                device.read(relay)
            case "page":
                device.read(relay, 1)
            case "hear" if who != whom:
                device.hear(devices[whom], now, relay)
            case "ask":
                device.ask(relay)
            case "reset":
                device.begin()


def settled(devices: list[Device], relay: Relay, now: int = 0) -> None:
    """All post, read to the end, and exchange statements."""
    for device in devices:
        device.state(now)
        device.post(relay)
    for device in devices:
        device.read(relay)


@examples
@given(steps)
def test_an_honest_relay_is_never_accused(script: list[tuple[str, int, int]]) -> None:
    relay, devices = Relay(), [Device(keys) for keys in KEYS]
    run(relay, devices, script)
    settled(devices, relay)
    for device in devices:
        assert device.findings == []
        assert device.refused == 0
        assert device.chains.tips == relay.heads
        for key, head in relay.heads.items():
            taken = [header.seq for header in device.taken[device.since :] if header.key == key]
            assert key == device.key or taken == list(range(1, head.seq + 1))


@examples
@given(steps, st.integers(0, 25), steps)
def test_a_device_put_back_from_a_backup_sees_it_and_nobody_else_is_harmed(
    before: list[tuple[str, int, int]], cut: int, after: list[tuple[str, int, int]]
) -> None:
    relay, devices = Relay(), [Device(keys) for keys in KEYS]
    run(relay, devices, [step for step in before[:cut] if step[0] != "reset"])
    backup = copy.deepcopy(devices[0])
    run(relay, devices, [step for step in before[cut:] if step[0] != "reset"])
    devices[0].write(b"after the backup")
    devices[0].post(relay)
    signed = devices[0].chains.tips[devices[0].key]
    devices[0] = backup
    run(relay, devices, [step for step in after if step[0] != "reset"])
    devices[0].ask(relay)
    devices[0].post(relay)
    assert devices[0].found(OwnRollback)
    assert all(isinstance(finding, OwnRollback) for finding in devices[0].findings)
    assert relay.heads[signed.key].hash == signed.hash
    for device in devices[1:]:
        # What it said while it was an old copy of itself shows.
        assert all(isinstance(found, Regressed) and found.key == devices[0].key for found in device.findings)
        device.findings.clear()
    devices[0].lives += 10
    devices[0].begin()
    devices[0].findings.clear()
    settled(devices, relay)
    for device in devices:
        assert device.findings == []
        assert device.chains.tips == relay.heads


class Hostile(Relay):
    """Shows `lie(feed)` instead of its feed, and the heads that go with it."""

    def __init__(self, honest: Relay, lie: Callable[[list[bytes]], list[bytes]]) -> None:
        super().__init__(lie(list(honest.feed)))
        for data in self.feed:
            header = decode_entry(data).header
            if header.key not in self.heads or self.heads[header.key].seq < header.seq:
                self.heads[header.key] = header


def prepared(script: list[tuple[str, int, int]]) -> tuple[Relay, list[Device]]:
    """A mailbox in which every author has at least three entries; device 0 has read nothing of it."""
    relay, devices = Relay(), [Device(keys) for keys in KEYS]
    run(relay, devices, [step for step in script if step[1] != 0 and step[0] != "reset"])
    for device in devices[1:]:
        for text in (b"x", b"y", b"z"):
            device.write(text)
        device.post(relay)
    for device in devices[1:]:
        device.read(relay)
    return relay, devices


def chain_positions(feed: list[bytes], key: ChainKey) -> list[int]:
    return [index for index, data in enumerate(feed) if decode_entry(data).header.key == key]


@examples
@given(steps, st.data())
def test_reordering_and_dropping_are_seen(script: list[tuple[str, int, int]], data: st.DataObject) -> None:
    relay, (victim, author, witness) = prepared(script)
    where = chain_positions(relay.feed, author.key)
    index = data.draw(st.integers(0, len(where) - 2))
    left, right = where[index], where[index + 1]

    def swapped(feed: list[bytes]) -> list[bytes]:
        feed[left], feed[right] = feed[right], feed[left]
        return feed

    def without(feed: list[bytes]) -> list[bytes]:
        return feed[:left] + feed[left + 1 :]

    for lie in (swapped, without):
        reader = copy.deepcopy(victim)
        reader.read(Hostile(relay, lie))
        assert reader.found(Gap)
        assert [header.seq for header in reader.taken if header.key == author.key] == list(range(1, index + 1))
        reader.findings.clear()
        reader.read(relay)
        reader.hear(witness, 0, relay)
        assert reader.findings == []  # shown the truth, it goes on
        assert reader.chains.tips == relay.heads


@examples
@given(steps, st.data())
def test_replays_change_nothing(script: list[tuple[str, int, int]], data: st.DataObject) -> None:
    relay, (victim, *_) = prepared(script)
    again = data.draw(st.lists(st.sampled_from(relay.feed), min_size=1))
    victim.read(relay)
    before = list(victim.taken)
    victim.read(Hostile(relay, lambda feed: feed + again))
    assert victim.findings == []
    assert victim.taken == before


@examples
@given(steps, st.data())
def test_withholding_is_seen_at_the_first_honest_contact(
    script: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    relay, (victim, _, witness) = prepared(script)
    cut = data.draw(st.integers(0, relay.last() - 1))
    hostile = Hostile(relay, lambda feed: feed[:cut])
    victim.ask(hostile)
    assert not victim.found(Withheld)
    victim.hear(witness, 0, hostile)
    assert victim.found(Withheld)


@examples
@given(steps, st.data())
def test_withholding_one_author_is_seen_by_the_statements_of_others(
    script: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    relay, (victim, author, witness) = prepared(script)
    witness.state(0)
    witness.post(relay)
    where = chain_positions(relay.feed, author.key)
    kept = data.draw(st.integers(0, len(where) - 1))
    hidden = set(where[kept:])
    victim.read(Hostile(relay, lambda feed: [entry for n, entry in enumerate(feed) if n not in hidden]))
    assert victim.found(Withheld) or victim.found(Gap)


@examples
@given(steps, st.data())
def test_a_rollback_is_seen_at_once(script: list[tuple[str, int, int]], data: st.DataObject) -> None:
    relay, (victim, *_) = prepared(script)
    victim.read(relay)
    cut = data.draw(st.integers(0, relay.last() - 1))
    victim.ask(Hostile(relay, lambda feed: feed[:cut]))
    assert victim.found(RolledBack)


@settings(examples, max_examples=10)
@given(steps, st.data())
def test_a_frozen_state_is_stale_after_a_week(script: list[tuple[str, int, int]], data: st.DataObject) -> None:
    relay, devices = prepared(script)
    victim = devices[0]
    settled(devices, relay, DAY)
    frozen = copy.deepcopy(relay)
    for day in range(2, 12):
        settled(devices[1:], relay, day * DAY)
        victim.read(frozen)
        stale = victim.chains.stale_since(day * DAY + 1, 0)
        assert stale == (DAY if day * DAY + 1 - DAY > STALE_AFTER_S else None)
    assert not victim.findings
    victim.hear(devices[data.draw(st.integers(1, 2))], 12 * DAY, frozen)
    assert victim.found(Withheld)


@examples
@given(steps, st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_a_fork_is_proved_within_one_exchange_of_statements(
    script: list[tuple[str, int, int]], shown: int, other: int, by_relay: bool
) -> None:
    """An author signs two histories, the relay shows each to another member."""
    relay, (one, author, two) = prepared(script)
    left, right = copy.deepcopy(relay), copy.deepcopy(relay)
    twin = copy.deepcopy(author)
    for number in range(shown):
        author.write(b"left %d" % number)
    for number in range(other):
        twin.write(b"right %d" % number)
    author.post(left)
    twin.post(right)
    one.read(left)
    two.read(right)
    assert one.findings == two.findings == []
    if by_relay:
        two.state(0)
        two.post(right)
        left.feed.append(right.feed[-1])
    one.hear(two, 0, left)
    two.hear(one, 0, right)
    proofs = [finding.proof for finding in one.findings + two.findings if isinstance(finding, Fork)]
    for proof in proofs:
        assert decode_fork_proof(proof.encoded).signer == author.key.signer
    if abs(shown - other) > 1:
        # The headers at hand do not meet; whoever has fewer entries misses those that the other has seen.
        assert (one if shown < other else two).found(Withheld)
        return
    assert one.found(Fork)
    assert two.found(Fork)
    taken = list(one.taken)
    author.write(b"later")
    author.post(left)
    one.read(left)
    assert one.taken == taken
    assert one.found(Frozen)


@examples
@given(steps, st.data())
def test_changed_and_foreign_entries_are_refused(script: list[tuple[str, int, int]], data: st.DataObject) -> None:
    relay, (victim, author, _) = prepared(script)
    index = data.draw(st.integers(0, relay.last() - 1))
    bit = data.draw(st.integers(0, 8 * len(relay.feed[index]) - 1))
    changed = bytearray(relay.feed[index])
    changed[bit // 8] ^= 1 << bit % 8
    foreign = next_slot(b"g" * 16, author.key, None, 1, b"k" * 16).sign(author.keys, b"of another folder").encoded
    for wrong in (bytes(changed), foreign):
        reader = copy.deepcopy(victim)
        lying = Relay([*relay.feed[:index], wrong, *relay.feed[index + 1 :]], relay.heads)
        reader.read(lying)
        assert reader.refused == 1
        assert len(reader.taken) == index
