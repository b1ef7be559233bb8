"""What a relay can serve from a mailbox: entries, headers, statements, snapshots and proofs of forks."""

from __future__ import annotations

import contextlib

from p2psync.errors import AuthenticationError, InputError
from p2psync.protocol import codec
from p2psync.protocol.chains import Chains, Duplicate, ForkProof, Fresh, decode_fork_proof
from p2psync.protocol.mailbox import (
    Head,
    Header,
    Snapshot,
    decode_entry,
    decode_head,
    decode_header,
    decode_snapshot,
)
from p2psync.protocol.messages import MailboxHeads
from tests.fuzz.rules import Target
from tests.fuzz.targets.signed import believing
from tests.protocol.test_chains import ALICE, FOLDER, ME, OWN, history
from tests.protocol.test_mailbox import first, second

OURS, THEIRS = history(ALICE, "abc"), history(ALICE, "axy")
HEAD = Head(3, 1_700_000_000, tuple(OURS[2:]))
SNAPSHOT = Snapshot(9, b"m" * 32, ((b"h" * 32, 4096),), tuple(OURS[1:2]))


def view() -> Chains:
    """A device that has read two entries of a chain and has one of its own on the way."""
    own = history(ME, "ab")
    return Chains(FOLDER, OWN, tips=[OURS[1], own[0]], unsent=own[1:])


def feed_entry(data: bytes) -> None:
    """An entry of the feed, down to the decision about it."""
    entry = decode_entry(data)
    assert entry.encoded == data
    assert decode_header(entry.header.encoded) == entry.header
    take(view(), entry.header)


def take(chains: Chains, header: Header) -> None:
    """Judge and apply; then it is known, or nothing has changed."""
    before = dict(chains.tips)
    decision = chains.judge(header)
    chains.apply(decision)
    if isinstance(decision, Fresh):
        assert chains.judge(header) == Duplicate(header)
    else:
        assert chains.tips == before


def feed_header(data: bytes) -> None:
    """A header in the relay's list."""
    header = decode_header(data)
    assert header.encoded == data
    chains = view()
    chains.judge_relay([header], asked_with=dict(chains.tips), caught_up=True)


def feed_statement(data: bytes) -> None:
    """What was sealed in a statement of freshness."""
    head = decode_head(data, FOLDER)
    chains = view()
    chains.judge_heads(OURS[0].key, head, caught_up=True, newest=True)
    chains.heard(OURS[0].key, head)
    chains.stale_since(1_700_000_000, 0)


def feed_told_heads(data: bytes) -> None:
    """What a connected member says that a relay has shown it: what was judged alone can be judged together."""
    message = codec.decode(data)
    if not isinstance(message, MailboxHeads):
        raise InputError("another message")
    chains, news = view(), {}
    for encoded in message.headers:
        with contextlib.suppress(InputError, AuthenticationError):
            header = decode_header(encoded)
            if chains.judge_heads(header.key, Head(0, 0, (header,)), caught_up=False):
                news[header.key] = header
    found = chains.judge_heads(OWN, Head(0, 0, tuple(news.values())), caught_up=True)
    assert len(found) == len(news)
    for finding in found:
        chains.apply(finding)


def feed_snapshot(data: bytes) -> None:
    """What was sealed in a snapshot."""
    chains = view()
    for decision in chains.adopt(decode_snapshot(data, FOLDER).heads):
        chains.apply(decision)


def feed_fork_proof(data: bytes) -> None:
    """A proof that somebody passes on."""
    proof = decode_fork_proof(data)
    assert proof.first.signer == proof.second.signer == proof.signer
    assert proof.first.hash != proof.second.hash


def _proofs() -> list[bytes]:
    return [ForkProof(OURS[1], THEIRS[1]).encoded, ForkProof(OURS[1], THEIRS[2]).encoded]


def _told() -> list[bytes]:
    messages = [MailboxHeads(FOLDER, b"r" * 32, [h.encoded for h in heads]) for heads in (OURS, THEIRS, OURS[3:])]
    return [codec.encode(message) for message in messages]


_DUE = (InputError, AuthenticationError)

TARGETS = (
    Target("mailbox-entry", feed_entry, _DUE, lambda: [first().encoded, second().encoded], "msgpack"),
    Target(
        "mailbox-entry-believed",
        feed_entry,
        _DUE,
        lambda: [first().encoded, second().encoded],
        "msgpack",
        believing,
        0.5,
    ),
    Target(
        "mailbox-header-believed",
        feed_header,
        _DUE,
        lambda: [h.encoded for h in OURS + THEIRS],
        "msgpack",
        believing,
        0.5,
    ),
    Target("mailbox-statement", feed_statement, _DUE, lambda: [HEAD.encode()], "msgpack", believing, 0.5),
    Target("told-heads", feed_told_heads, _DUE, _told, "msgpack", believing, 0.5),
    Target("mailbox-snapshot", feed_snapshot, _DUE, lambda: [SNAPSHOT.encode()], "msgpack", believing, 0.5),
    Target("fork-proof", feed_fork_proof, _DUE, _proofs, "msgpack"),
    Target("fork-proof-believed", feed_fork_proof, _DUE, _proofs, "msgpack", believing, 0.5),
)
