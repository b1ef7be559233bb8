"""Records, manifests and paths; the Merkle descent with a peer that lies; the texts people type; ignore files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from unittest import mock

import msgspec

from p2psync.errors import InputError, IntegrityError, ProtocolError
from p2psync.model import ignore
from p2psync.model.descent import MAX_QUERY, MerkleDriver, Query, answer
from p2psync.model.ids import (
    device_tag,
    format_device_id,
    format_folder_id,
    parse_device_id,
    parse_folder_id,
    tag_matches,
)
from p2psync.model.ignore import DEFAULTS, IgnoreMatcher
from p2psync.model.manifest import decode_manifest
from p2psync.model.merkle import pack_node, unpack_node
from p2psync.model.paths import ancestors, check_path, depth, display, fold, join, name, parent, unrepresentable
from p2psync.model.records import decode_record, decode_stored_record
from p2psync.reconcile.conflicts import conflict_name, parse_conflict_name
from p2psync.sync.compare import decode_answer, decode_query, encode_answer, encode_query
from tests.fuzz.rules import Target
from tests.fuzz.targets.signed import AUTHOR, LONG_MANIFEST, RECORDS
from tests.model.test_merkle import filled
from tests.model.tries import MemoryTrie

_LIST = msgspec.msgpack.Decoder(list[bytes])
_ROUNDS = msgspec.msgpack.Decoder(list[list[bytes]])


# ── records ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def feed_record(data: bytes) -> None:
    """A record from outside: canonical, and read alike by the quick decoder of the index."""
    record = decode_record(data)
    assert record.encode() == data
    assert decode_stored_record(data) == record


def feed_stored_record(data: bytes) -> None:
    """A record in our own index, damaged."""
    decode_stored_record(data)


def feed_manifest(data: bytes) -> None:
    """A list of chunks."""
    manifest = decode_manifest(data)
    assert manifest.encode() == data
    chunks = manifest.chunks()
    assert len(chunks) == manifest.count
    assert sum(length for *_, length in chunks) == manifest.size


def feed_path(data: bytes) -> None:
    """A path of a folder entry, and everything that is computed from it."""
    display(data)
    parse_conflict_name(data)
    path = check_path(data)
    assert join(parent(path), name(path)) == path
    assert len(ancestors(path)) == depth(path) - 1
    assert fold(fold(path)) == fold(path)
    unrepresentable(name(path), utf8_only=True, name_max=143, windows=True)
    copy = conflict_name(path, "ABCDEFG", int.from_bytes(data[:8], "big"))
    check_path(copy)
    assert parse_conflict_name(copy) is not None


# ── Merkle ──────────────────────────────────────────────────────────────────────────────────────────────────────────
_SMALL, _LARGE = filled(range(20)), filled(range(3000))


def feed_merkle_query(data: bytes) -> None:
    """Nodes that a peer asks for."""
    try:
        nodes = _LIST.decode(data)
    except (msgspec.MsgspecError, ValueError):
        nodes = [data]
    query = decode_query(nodes)
    reply = answer(_LARGE, query)
    assert encode_query(query) == nodes
    assert decode_answer(encode_answer(reply)) == reply


def feed_merkle_answers(data: bytes) -> None:
    """Everything a peer answers in one comparison, against a small and a large folder."""
    try:
        rounds = _ROUNDS.decode(data[1:])
    except (msgspec.MsgspecError, ValueError):
        rounds = [[data[1:]]]
    trie = _LARGE if data[:1] > b"\x7f" else _SMALL
    driver = MerkleDriver(trie)
    for nodes in rounds[:8]:
        query = driver.next_queries()
        assert len(query) <= MAX_QUERY
        if not query:
            break
        # What a peer leaves out it can answer with the same again.
        driver.feed(decode_answer([nodes[i % len(nodes)] for i in range(len(query))] if nodes else []))
    assert len(set(driver.mine_to_send)) == len(driver.mine_to_send)
    assert set(driver.mine_to_send) <= set(trie.table)


def _exchange(mine: MemoryTrie, theirs: MemoryTrie) -> tuple[list[Query], list[list[bytes]]]:
    driver, queries, rounds = MerkleDriver(mine), [], []
    while query := driver.next_queries():
        queries.append(query)
        rounds.append(encode_answer(answer(theirs, query)))
        driver.feed(decode_answer(rounds[-1]))
    return queries, rounds


def _query_seeds() -> list[bytes]:
    queries = _exchange(_SMALL, _LARGE)[0]
    return [msgspec.msgpack.encode(encode_query(query[:8])) for query in queries] + [bytes(40)]


def _answer_seeds() -> list[bytes]:
    other = filled(range(1500, 4500))
    seeds = []
    for head, mine in ((b"\x00", _SMALL), (b"\xff", _LARGE)):
        rounds = _exchange(mine, other)[1]
        seeds.append(head + msgspec.msgpack.encode(rounds[:1]))
        seeds.append(head + msgspec.msgpack.encode([nodes[:3] for nodes in rounds[:3]]))
        seeds.append(head + msgspec.msgpack.encode([[], rounds[0]]))
        seeds.append(head + msgspec.msgpack.encode([encode_answer([(None, ())]), encode_answer([None])]))
    return [seed for seed in seeds if len(seed) <= 4000]


def feed_trie_node(data: bytes) -> None:
    """An inner node of the summary, as stored."""
    children = unpack_node(data)
    assert len(data) == 2 + 36 * int.from_bytes(data[:2], "big").bit_count()
    if all(child.size for i, child in enumerate(children) if int.from_bytes(data[:2], "big") >> i & 1):
        assert pack_node(children) == data


# ── what people type ────────────────────────────────────────────────────────────────────────────────────────────────
def _text(data: bytes) -> str:
    """An argument of a command, as Python hands it over."""
    return data.decode("utf-8", "surrogateescape")


def feed_device_id(data: bytes) -> None:
    """A device ID."""
    device = parse_device_id(_text(data))
    assert parse_device_id(format_device_id(device)) == device


def feed_folder_id(data: bytes) -> None:
    """A folder ID."""
    folder = parse_folder_id(_text(data))
    assert format_folder_id(folder) == _text(data).strip().lower()


def feed_tag(data: bytes) -> None:
    """The tag of an announcement."""
    if tag_matches(_text(data), AUTHOR.device_id):
        assert len(data) == 32


# ── ignore files ────────────────────────────────────────────────────────────────────────────────────────────────────
_PATHS = [
    b"a",
    b"a/b.part",
    b"x" * 255,
    b"a" * 200 + b".txt",
    "\u00e9/\u0301".encode(),
    b"\xff/\xfe",
    b" ",
    b"a\nb",
    b"#a#",
]
_PATHS += [b"/".join([b"ab"] * 60), b"build/out/a.o", b"\\", b"[a]", b"!a"]


def feed_ignore(data: bytes) -> None:
    """An ignore file: every line is a pattern or is reported, and every path has an answer."""
    matcher = IgnoreMatcher(data)
    assert len(matcher.errors) <= data.count(b"\n") + 1
    # A third of them, another for each length: matching takes as long as translating.
    for path in _PATHS[len(data) % 3 :: 3]:
        below = matcher.prune(parent(path))
        for is_directory in (False, True):
            ignored = matcher.ignored(path, is_directory)
            assert ignored or not below


class _AnyOf:
    """As much of a union of patterns as is used, each compiled by itself."""

    def __init__(self, expressions: list[str]) -> None:
        self._patterns = [_compiled(expression) for expression in expressions]

    def fullmatch(self, text: str) -> bool:
        return any(pattern.fullmatch(text) for pattern in self._patterns)


@lru_cache(1 << 12)
def _compiled(expression: str) -> re.Pattern[str]:
    return re.compile(expression, re.DOTALL)


@contextmanager
def remembering_patterns() -> Iterator[None]:
    """Translating is nearly all the time: a pattern is translated once, seven unions of eight are not compiled in one
    piece, and only four patterns come before every file's own.
    """
    whole = ignore._union

    def union(expressions: Iterable[str]) -> object:
        parts = list(expressions)
        return _AnyOf(parts) if sum(map(len, parts)) % 8 else whole(parts)

    with (
        mock.patch("p2psync.model.ignore._rule", lru_cache(1 << 12)(ignore._rule)),
        mock.patch("p2psync.model.ignore._union", union),
        mock.patch("p2psync.model.ignore.DEFAULTS", DEFAULTS[::7]),
    ):
        yield


def _ignore_seeds() -> list[bytes]:
    lines = "\n".join(DEFAULTS).encode()
    return [
        lines,
        b"*.o\n!keep.o\n/build/\n**/out/**\n# note\n\\#a\\#\n[a-z]?*.txt\n",
        b"a/**/b\n[!a]\n[]]\n[^]a]\n*a*a*b\r\n\xef\xbb\xbf!\n\\ \n" + "\u00e9*\n".encode(),
        b"/\n//\n**\n/**\n!/**/\n[[:alpha:]]\n[a-\\]]\n",
    ]


TARGETS = (
    Target("record", feed_record, (InputError,), lambda: RECORDS, "msgpack"),
    Target("stored-record", feed_stored_record, (InputError,), lambda: RECORDS, "msgpack"),
    Target(
        "manifest",
        feed_manifest,
        (InputError,),
        lambda: [LONG_MANIFEST.encode(), *(decode_record(r).manifest for r in RECORDS)],
        "msgpack",
    ),
    Target("path", feed_path, (InputError,), lambda: [b"a/b.txt", b"x" * 255, "\u00e9t\u00e9/\u0301".encode()], "text"),
    Target("merkle-query", feed_merkle_query, (InputError,), _query_seeds, "msgpack"),
    Target(
        "merkle-answers",
        feed_merkle_answers,
        (InputError, ProtocolError),
        _answer_seeds,
        "msgpack case",
        # One input stands for up to eight full answers, half a megabyte on the wire.
        max_seconds=0.8,
    ),
    Target("trie-node", feed_trie_node, (IntegrityError,), lambda: [_LARGE.nodes[b""], bytes(2)], "bytes"),
    Target("device-id", feed_device_id, (InputError,), lambda: [format_device_id(AUTHOR.device_id).encode()], "text"),
    Target("folder-id", feed_folder_id, (InputError,), lambda: [format_folder_id(b"f" * 16).encode()], "text"),
    Target("tag", feed_tag, (), lambda: [device_tag(AUTHOR.device_id, b"n" * 8).encode()], "text"),
    Target("ignore", feed_ignore, (), _ignore_seeds, "text", remembering_patterns),
)
