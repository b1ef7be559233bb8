"""What an index keeps for mailboxes: the keys of epochs, chains of entries, and what is there and what is not yet.

The rows of one mailbox stand under 8 bytes cut from the name of the relay, so that a folder can have several.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from p2psync.crypto.epochs import EpochKey, KeyRing
from p2psync.index import tables
from p2psync.index.reader import Reader
from p2psync.index.tables import MailboxRow, number, stop_of
from p2psync.index.writer import Writer
from p2psync.model.hashing import DIGEST_SIZE, labelled
from p2psync.model.ids import DEVICE_ID_SIZE
from p2psync.model.paths import KEY_SIZE, PathKey
from p2psync.model.records import FileRecord
from p2psync.protocol.chains import Chains, ForkProof, Statement, decode_fork_proof
from p2psync.protocol.mailbox import CHAIN_SIZE, ChainKey, Entry, Header, decode_entry, decode_header

NAME_SIZE = 8
MAX_POSTED = 32
"""Records of one path that are known to be there; what is forgotten would be posted once more, to no harm."""
_TIP, _FORK, _STATEMENT, _GIVEN = b"t", b"f", b"s", b"g"

BEGINNING = 8
"""Bytes of a content root that are kept with the record that names it."""
_NO_CONTENT = bytes(BEGINNING)


class Mark(NamedTuple):
    """A record in an entry: its path, its id, and the beginning of the root of its content, zeros for none."""

    key: PathKey
    record: bytes
    content: bytes


Marks = Sequence[Mark]
"""The records in an entry."""


def mark(record: FileRecord, identifier: bytes) -> Mark:
    """How a record with this id is marked."""
    return Mark(record.key, identifier, record.content[:BEGINNING].ljust(BEGINNING, b"\0"))


# ── keys of epochs ──────────────────────────────────────────────────────────────────────────────────────────────────
def key_ring(reader: Reader) -> KeyRing:
    """The epoch keys that this device holds."""
    return KeyRing(reader.folder, (EpochKey(reader.folder, data) for _, data in reader.txn.range(tables.EPOCH_KEYS)))


def put_keys(writer: Writer, keys: Iterable[EpochKey]) -> None:
    """Keep keys of epochs."""
    for key in keys:
        writer.txn.put(tables.EPOCH_KEYS, key.id, key.secret)


def grants(reader: Reader, key_id: bytes) -> dict[bytes, bytes]:
    """Recipient → the encoded grant made here, b"" for a device that has shown that it has the key."""
    rows = reader.txn.range(tables.GRANTS, key_id, stop_of(key_id))
    return {key[-DEVICE_ID_SIZE:]: data for key, data in rows}


def put_grant(writer: Writer, key_id: bytes, recipient: bytes, encoded: bytes) -> None:
    """Keep a grant, or (b"") that none is needed."""
    writer.txn.put(tables.GRANTS, key_id + recipient, encoded)


# ── one mailbox ─────────────────────────────────────────────────────────────────────────────────────────────────────
class MailboxView:
    """What a view of the index says about one mailbox."""

    def __init__(self, reader: Reader, relay: bytes) -> None:
        """`relay` is the 32-byte name of the relay."""
        self.reader = reader
        self._name = relay[:NAME_SIZE]

    def row(self) -> MailboxRow:
        """How far things are; as at the beginning when there is no row."""
        data = self.reader.txn.get(tables.MAILBOXES, self._name)
        return tables.decode(tables.mailbox_rows, data) if data is not None else MailboxRow()

    def own_chain(self, signer: bytes) -> ChainKey:
        """The chain this device adds to: another one after every life of the index (I7), and when one was given up."""
        reader, generation = self.reader, self.row().generation
        seed = (reader.index_id, number(reader.incarnation), self._name, number(generation))
        return ChainKey(signer, labelled(b"p2psync mailbox chain", *seed)[:CHAIN_SIZE])

    def chains(self, signer: bytes) -> Chains:
        """What is known of the chains."""
        tips: list[Header] = []
        forks: list[ForkProof] = []
        statements: list[Statement] = []
        for key, data in self._rows(tables.CHAINS):
            match key[:1]:
                case b"t":
                    tips.append(decode_header(data))
                case b"f":
                    forks.append(decode_fork_proof(data))
                case b"g":
                    continue
                case _:
                    chain = ChainKey(key[1:-CHAIN_SIZE], key[-CHAIN_SIZE:])
                    statements.append(Statement(chain, *tables.decode(tables.statement_rows, data)))
        own = self.own_chain(signer)
        unsent = [entry.header for entry, _ in self.outbox() if entry.header.key == own]
        return Chains(self.reader.folder, own, tips=tips, forks=forks, statements=statements, unsent=unsent)

    def outbox(self) -> list[tuple[Entry, Marks]]:
        """Signed entries that the mailbox has not acknowledged, oldest first."""
        rows = (tables.decode(tables.outbox_rows, data) for _, data in self._rows(tables.OUTBOX))
        return [(decode_entry(encoded), _split(marks)) for encoded, marks in rows]

    def posted(self, key: PathKey) -> frozenset[bytes]:
        """Ids of the records of a path that are known to be there."""
        return frozenset(mark.record for mark in self._posted(key))

    def named(self, after: bytes = b"", limit: int = 1000) -> list[tuple[PathKey, frozenset[bytes]]]:
        """Paths past `after` in order, and how the roots of the contents begin that their records there name."""
        first = self._name + after + (b"\0" if after else b"")
        rows = islice(self.reader.txn.range(tables.POSTED, first, stop_of(self._name)), limit)
        paths = ((PathKey(key[NAME_SIZE:]), data) for key, data in rows)
        return [(key, frozenset(m.content for m in _marks_of(key, data)) - {_NO_CONTENT}) for key, data in paths]

    def _posted(self, key: PathKey) -> list[Mark]:
        return _marks_of(key, self.reader.txn.get(tables.POSTED, self._name + key) or b"")

    def is_given(self, key_id: bytes, recipient: bytes) -> bool:
        """Whether a grant made here is there."""
        return self.reader.txn.get(tables.CHAINS, self._name + _GIVEN + key_id + recipient) is not None

    def upload(self, content: bytes) -> tuple[bytes, int] | None:
        """(key id, time) under which this device has put a content there."""
        data = self.reader.txn.get(tables.UPLOADS, self._name + content)
        return tables.decode(tables.upload_rows, data) if data is not None else None

    def uploads(self) -> Iterator[tuple[bytes, bytes, int]]:
        """(content root, key id, time) of every content this device has put there."""
        for content, data in self._rows(tables.UPLOADS):
            yield content, *tables.decode(tables.upload_rows, data)

    def _rows(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        for key, data in self.reader.txn.range(table, self._name, stop_of(self._name)):
            yield key[NAME_SIZE:], data


class MailboxWriter(MailboxView):
    """Changes what the index says about one mailbox."""

    def __init__(self, writer: Writer, relay: bytes) -> None:
        super().__init__(writer, relay)
        self._txn = writer.txn

    def put_row(self, row: MailboxRow) -> None:
        """Replace how far things are."""
        self._txn.put(tables.MAILBOXES, self._name, tables.encode(row))

    def put_tip(self, header: Header) -> None:
        """The newest entry of a chain."""
        self._txn.put(tables.CHAINS, self._name + _TIP + b"".join(header.key), header.encoded)

    def put_fork(self, proof: ForkProof) -> None:
        """An author has signed two histories."""
        self._txn.put(tables.CHAINS, self._name + _FORK + proof.signer, proof.encoded)

    def put_statement(self, statement: Statement) -> None:
        """The newest statement of a chain."""
        data = tables.encode((statement.counter, statement.time))
        self._txn.put(tables.CHAINS, self._name + _STATEMENT + b"".join(statement.key), data)

    def put_outbox(self, entry: Entry, marks: Marks) -> None:
        """A signed entry, before it is posted."""
        packed = b"".join(b"".join(mark) for mark in marks)
        self._txn.put(tables.OUTBOX, self._outbox_key(entry.header), tables.encode((entry.encoded, packed)))

    def drop_outbox(self, header: Header) -> None:
        """It is there, or its chain is given up."""
        self._txn.delete(tables.OUTBOX, self._outbox_key(header))

    def _outbox_key(self, header: Header) -> bytes:
        # By chain too: what an earlier life left behind must not stand in the way of the first entries of this one.
        return self._name + header.chain + number(header.seq)

    def mark_posted(self, marks: Marks) -> None:
        """These records are there; of each path the last `MAX_POSTED` are known."""
        fresh: dict[PathKey, list[Mark]] = {}
        for mark in marks:
            fresh.setdefault(mark.key, []).append(mark)
        for key, new in fresh.items():
            known = list(dict.fromkeys([*self._posted(key), *new]))[-MAX_POSTED:]
            self._txn.put(tables.POSTED, self._name + key, b"".join(mark.record + mark.content for mark in known))

    def put_given(self, key_id: bytes, recipient: bytes) -> None:
        """A grant is there."""
        self._txn.put(tables.CHAINS, self._name + _GIVEN + key_id + recipient, b"")

    def put_upload(self, content: bytes, key_id: bytes, now: int) -> None:
        """A content is there, referred to under this epoch."""
        self._txn.put(tables.UPLOADS, self._name + content, tables.encode((key_id, now)))

    def drop_upload(self, content: bytes) -> None:
        """A content is not kept there any more."""
        self._txn.delete(tables.UPLOADS, self._name + content)

    def forget(self, table: str) -> None:
        """Drop all rows of this mailbox in a table."""
        for key in [key for key, _ in self._rows(table)]:
            self._txn.delete(table, self._name + key)


def _split(marks: bytes) -> Marks:
    step = KEY_SIZE + DIGEST_SIZE + BEGINNING
    parts = [marks[i : i + step] for i in range(0, len(marks), step)]
    return [mark for part in parts for mark in _marks_of(PathKey(part[:KEY_SIZE]), part[KEY_SIZE:])]


def _marks_of(key: PathKey, data: bytes) -> list[Mark]:
    step = DIGEST_SIZE + BEGINNING
    parts = [data[i : i + step] for i in range(0, len(data), step)]
    return [Mark(key, part[:DIGEST_SIZE], part[DIGEST_SIZE:]) for part in parts]
