"""Links and batches of records, before and behind the check of their signatures; whole folders' histories."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from p2psync.errors import AuthenticationError, InputError, PermissionDenied
from p2psync.membership import LinkPool, Membership, Role, decode_link, fold, open_batch
from p2psync.membership.links import LINK_FORMAT
from p2psync.model.ids import replica
from p2psync.model.records import SignedBatch, record_id
from tests.fuzz.rules import Target
from tests.fuzz.targets.signed import BATCH, FOLDER, LINKS, RECORDS, TEAM, believing, remembering
from tests.membership.helpers import device, found

REFUSED = (InputError, AuthenticationError)
_FOUNDED = found()
_LIST = msgspec.msgpack.Decoder(list[bytes])
_BATCH = msgspec.msgpack.Decoder(tuple[SignedBatch, dict[int, bytes]])
_WRITTEN = msgspec.msgpack.Decoder(tuple[int, int, list[bytes]])
_STEPS = msgspec.msgpack.Decoder(list[tuple[int, int, msgspec.Raw]])


# ── links ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def feed_link(data: bytes) -> None:
    """One link, and its signature."""
    link = decode_link(data)
    assert link.encoded == data
    link.verify()


def _links(data: bytes) -> list[bytes]:
    try:
        return _LIST.decode(data)[:100]
    except (msgspec.MsgspecError, ValueError):
        return [data]


def feed_links(data: bytes) -> None:
    """The links of a message, to somebody who knows the beginning of the folder and to somebody who knows nothing."""
    links = _links(data)
    pool = LinkPool(8)
    grown = pool.add(_FOUNDED, links)
    assert len(pool) <= 8
    assert_sound(grown)
    fold(links)


def assert_sound(membership: Membership) -> None:
    """What holds in every folder: an owner remains, and the same links give the same state."""
    assert membership.owners
    assert not membership.members.keys() & membership.former.keys()
    again = fold(reversed(membership.encoded_links()))
    assert (again.members, again.former, again.label, again.heads, again.epochs) == (
        membership.members,
        membership.former,
        membership.label,
        membership.heads,
        membership.epochs,
    )
    assert (again.current_epoch, again.epoch_stale) == (membership.current_epoch, membership.epoch_stale)
    for member in (*membership.members.values(), *membership.former.values()):
        membership.may_write(member.device_id, replica(member.device_id, 1), 3)


def feed_history(data: bytes) -> None:
    """A folder's history as a script: each step is an author, which earlier links it has seen, and an action.

    Links are hash-linked, so changed bytes seldom fit each other; here they always do. What cannot be is refused and
    leaves no trace, what remains is folded, and in any order to the same.
    """
    try:
        steps = _STEPS.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise InputError("no script") from None
    membership = _FOUNDED
    hashes = [decode_link(membership.encoded_links()[0]).hash]
    for author, seen, action in steps[:24]:
        prevs = sorted({h for i, h in enumerate(hashes) if seen >> i & 1} or {hashes[-1]})
        wire = (LINK_FORMAT, FOLDER, prevs, device(author % 5).card.signing_key, action, bytes(64))
        try:
            encoded = msgspec.msgpack.encode(wire)
            membership = membership.extend([encoded])
        except REFUSED:
            continue
        hashes.append(decode_link(encoded).hash)
    assert_sound(membership)


def _history_seeds() -> list[bytes]:
    def ids(number: int) -> bytes:
        return device(number).device_id

    def cut(number: int, counter: int) -> list[tuple[bytes, int]]:
        return [(replica(ids(number), 1), counter)]

    def script(*steps: tuple[int, int, object]) -> bytes:
        return msgspec.msgpack.encode(list(steps))

    joined: list[tuple[int, int, object]] = [
        (0, 1, [1, ids(1), Role.OWNER, "one", 0, b""]),
        (0, 2, [1, ids(2), Role.EDITOR, "two", 0, device(2).card.encode()]),
        (1, 4, [1, ids(3), Role.EDITOR, "three", 4, b""]),
    ]
    return [
        script(*joined),
        script(*joined, (0, 8, [3, ids(1), cut(1, 3)]), (1, 8, [3, ids(0), cut(0, 5)])),
        script(*joined, (0, 8, [2, ids(1), Role.VIEWER, cut(1, 3), 0]), (2, 8, [1, ids(4), Role.VIEWER, "", 0, b""])),
        script(*joined, (0, 8, [3, ids(2), []]), (3, 8, [4, "renamed"]), (1, 16, [2, ids(3), Role.OWNER, None, 7])),
        script(*joined, (1, 8, [5, 1, b"k" * 16, []]), (1, 16, [5, 2, b"l" * 16, []]), (0, 8, [3, ids(1), []])),
        script(*joined, (1, 8, [5, 1, b"k" * 16, []]), (0, 8, [5, 7, b"k" * 16, []]), (0, 8, [9, "later", [1, 2]])),
        script((0, 1, [1, ids(1), Role.OWNER, "", 0, b""]), (1, 2, [3, ids(0), cut(0, 1)]), (0, 2, [3, ids(1), []])),
    ]


# ── batches ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def feed_batch(data: bytes) -> None:
    """A batch and what came of its records, signature and all."""
    try:
        batch, records = _BATCH.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise InputError("no batch") from None
    for record, encoded in open_batch(batch, TEAM, records):
        assert batch.covers(record_id(encoded))
        assert record.encode() == encoded


def written(data: bytes) -> tuple[SignedBatch, dict[int, bytes]]:
    """Records that a member of the team has signed, whatever they say."""
    try:
        author, epoch, records = _WRITTEN.decode(data)
    except (msgspec.MsgspecError, ValueError):
        raise InputError("no records") from None
    ids = b"".join(map(record_id, records))
    signer = device(author % 5).card.signing_key
    return SignedBatch(FOLDER, signer, epoch, ids, bytes(64)), dict(enumerate(records))


def feed_written(data: bytes) -> None:
    """Records that are signed by who sends them, and wrong."""
    batch, records = written(data)
    assert len(open_batch(batch, TEAM, records)) == len(records)


def written_seeds() -> list[bytes]:
    """For `written`."""

    def one(author: int, records: Iterable[bytes]) -> bytes:
        return msgspec.msgpack.encode((author, 0, list(records)))

    return [one(0, RECORDS), *(one(0, [record]) for record in RECORDS), one(2, RECORDS[:1]), one(4, RECORDS[:1])]


TARGETS = (
    Target("link", feed_link, REFUSED, lambda: LINKS, "msgpack"),
    Target("link-believed", feed_link, REFUSED, lambda: LINKS, "msgpack", believing),
    Target("links-believed", feed_links, REFUSED, lambda: [msgspec.msgpack.encode(LINKS)], "msgpack", believing),
    Target("written-believed", feed_written, (*REFUSED, PermissionDenied), written_seeds, "msgpack", believing),
    Target("history-believed", feed_history, REFUSED, _history_seeds, "msgpack", believing),
    Target(
        "batch",
        feed_batch,
        (*REFUSED, PermissionDenied),
        lambda: [msgspec.msgpack.encode((BATCH, dict(enumerate(RECORDS))))],
        "msgpack",
    ),
    Target("links", feed_links, REFUSED, lambda: [msgspec.msgpack.encode(LINKS)], "msgpack", remembering),
)
