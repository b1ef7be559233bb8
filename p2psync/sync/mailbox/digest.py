"""What a stretch of a mailbox's feed says and proves: signed entries in, decisions out; nothing is stored here.

Links change who may say what. So a stretch ends behind the first entry that brings some: the caller takes them in and
goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from p2psync.crypto.epochs import EpochKey
from p2psync.crypto.seal import open_body
from p2psync.errors import AuthenticationError, InputError, PermissionDenied
from p2psync.membership.batches import open_batch
from p2psync.membership.fold import Membership
from p2psync.membership.links import decode_link
from p2psync.model.ids import short_id
from p2psync.model.records import FileRecord, SignedBatch
from p2psync.protocol import codec
from p2psync.protocol import messages as m
from p2psync.protocol.batcher import unpack
from p2psync.protocol.chains import Chains, Duplicate, Fork, ForkProof, Fresh, Gap, OwnRollback, Statement, Withheld
from p2psync.protocol.mailbox import Entry, EntryKind, Head, Header, decode_entry, decode_head, decode_snapshot

OpenKey = Callable[[Header], EpochKey | None]
"""The key that opens the body of an entry, None when it is not here."""


@dataclass
class Stretch:
    """What was learnt. `chains` has taken over what changes there."""

    chains: Chains
    upto: int
    """Number of the last entry that was looked at."""
    tips: dict[tuple[bytes, bytes], Header] = field(default_factory=dict)
    """The newest entry of every chain that has grown."""
    own: list[Header] = field(default_factory=list)
    """Entries of this device's present chain."""
    proofs: list[ForkProof] = field(default_factory=list)
    statements: dict[tuple[bytes, bytes], Statement] = field(default_factory=dict)
    records: list[tuple[SignedBatch, list[tuple[FileRecord, bytes]]]] = field(default_factory=list)
    links: list[bytes] = field(default_factory=list)
    holders: dict[tuple[bytes, bytes], None] = field(default_factory=dict)
    """(key id, device) of those who have shown that they have a key."""
    covered: int = 0
    """Last entry that a snapshot in this stretch covers."""
    skipped: int = 0
    """Number of the first entry that cannot be understood yet, for want of a key or of links; 0: none."""
    gap: Gap | None = None
    withheld: list[Withheld] = field(default_factory=list)
    rollback: OwnRollback | None = None
    refused: list[str] = field(default_factory=list)
    """In words, what members left there and does not count."""
    broken: list[str] = field(default_factory=list)
    """In words, what no member can have left there like that."""


def digest(entries: Sequence[tuple[int, bytes]], chains: Chains, membership: Membership, key_of: OpenKey) -> Stretch:
    """Go through entries in order, up to the first that brings links or shows an earlier life of this device."""
    stretch = Stretch(copied(chains), 0)
    for number, data in entries:
        _take(stretch, number, data, membership, key_of)
        stretch.upto = number
        if stretch.links or stretch.rollback is not None:
            break
    return stretch


def copied(chains: Chains) -> Chains:
    """Chains that change alone."""
    return Chains(
        chains.folder,
        chains.own,
        tips=chains.tips.values(),
        forks=chains.forks.values(),
        statements=chains.statements.values(),
        unsent=chains.unsent,
    )


def is_known(membership: Membership, header: Header) -> bool:
    """Whether the author is, or was, somebody of this folder."""
    return header.author in membership.members or header.author in membership.former


def _take(stretch: Stretch, number: int, data: bytes, membership: Membership, key_of: OpenKey) -> None:
    try:
        entry = decode_entry(data)
    except InputError as error:
        stretch.broken.append(f"entry {number} is malformed: {error}")
        return
    if not is_known(membership, entry.header):
        stretch.skipped = stretch.skipped or number
        _open_links_of_stranger(stretch, entry, membership, key_of)
        return
    try:
        decision = stretch.chains.judge(entry.header)
    except (AuthenticationError, InputError) as error:
        stretch.broken.append(f"entry {number} does not verify: {error}")
        return
    match decision:
        case Fresh(header=header):
            stretch.chains.apply(decision)
            stretch.tips[header.key] = header
            if header.key == stretch.chains.own:
                stretch.own.append(header)
            _open(stretch, number, entry, membership, key_of)
        case Duplicate():
            # Read again: what could not be understood the first time may be now.
            _open(stretch, number, entry, membership, key_of)
        case Gap():
            stretch.gap = stretch.gap or decision
        case Fork(proof=proof):
            stretch.chains.apply(decision)
            stretch.proofs.append(proof)
        case OwnRollback():
            stretch.rollback = decision
        case _:
            pass


def _open_links_of_stranger(stretch: Stretch, entry: Entry, membership: Membership, key_of: OpenKey) -> None:
    """Who was let in may be the first to leave the link that says so here. Links prove themselves; no more is believed.

    Only who was given a key can have sealed them.
    """
    key = key_of(entry.header) if entry.header.kind == EntryKind.LINKS else None
    if key is None:
        return
    try:
        entry.header.verify()
        stretch.links += _read_links(open_body(key, entry.header.context, entry.body), membership)
    except (AuthenticationError, InputError):
        return


def _read_links(body: bytes, membership: Membership) -> list[bytes]:
    message = codec.decode(body)
    if not isinstance(message, m.Links) or message.folder != membership.folder:
        raise InputError("it holds something else than it says")
    return [decode_link(link).encoded for link in message.links]


def _open(stretch: Stretch, number: int, entry: Entry, membership: Membership, key_of: OpenKey) -> None:
    header = entry.header
    key = key_of(header)
    if key is None:
        stretch.skipped = stretch.skipped or number
        return
    try:
        body = open_body(key, header.context, entry.body)
        stretch.holders[header.key_id, header.author] = None
        match header.kind:
            case EntryKind.RECORDS:
                _open_records(stretch, number, body, membership)
            case EntryKind.LINKS:
                stretch.links += _read_links(body, membership)
            case EntryKind.HEAD:
                _hear(stretch, header, body, membership)
            case EntryKind.SNAPSHOT:
                # What it covers counts for those who take it in; here it only says that none is due.
                stretch.covered = max(stretch.covered, decode_snapshot(body, membership.folder).position)
            case _:
                pass
    except (AuthenticationError, InputError) as error:
        stretch.refused.append(f"entry {number} by {short_id(header.author)}: {error}")


def _open_records(stretch: Stretch, number: int, body: bytes, membership: Membership) -> None:
    message = codec.decode(body)
    if not isinstance(message, m.Records) or message.folder != membership.folder:
        raise InputError("it holds something else than it says")
    for group in unpack(message):
        try:
            stretch.records.append((group.batch, open_batch(group.batch, membership, group.records)))
        except PermissionDenied as error:
            # The author may be somebody whose invitation comes later.
            stretch.skipped = stretch.skipped or number
            stretch.refused.append(str(error))


def _hear(stretch: Stretch, header: Header, body: bytes, membership: Membership) -> None:
    """A statement of heads: the feed has been read up to it, so what it names and was not shown is withheld."""
    if not membership.may_read(header.author):
        return
    head = decode_head(body, membership.folder)
    known = [named for named in head.heads if is_known(membership, named)]
    if header.key != stretch.chains.own and not stretch.skipped:
        shown = Head(head.counter, head.time, tuple(known))
        for finding in stretch.chains.judge_heads(header.key, shown, caught_up=True):
            match finding:
                case Withheld():
                    stretch.withheld.append(finding)
                case Fork(proof=proof):
                    stretch.chains.apply(finding)
                    stretch.proofs.append(proof)
                case OwnRollback():
                    stretch.rollback = finding
                case _:
                    pass
    stretch.statements[header.key] = stretch.chains.heard(header.key, head)
