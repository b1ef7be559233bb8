"""Breaks valid encodings where it hurts: lengths, types, depth, order, identity, repetition; the rest stays valid.

A MessagePack or JSON input is read as a tree, one to three places of the tree are changed, and it is written again, so
that what comes out passes the first checks and reaches the ones behind them. Byte strings that hold MessagePack are
trees too. Everything follows from the `Random` that is given.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any

import msgspec

Tree = Any

_NUMBERS = [0, 1, 2, 7, 15, 16, 31, 32, 33, 127, 128, 255, 256, 4095, 4096, 65535, 65536, -1, -32, -33, -128, -129]
_NUMBERS += [2**n + d for n in (31, 32, 53, 62, 63, 64) for d in (-1, 0, 1) if 2**n + d < 2**64] + [-(2**31), -(2**63)]
_LENGTHS = [0, 1, 2, 8, 11, 12, 13, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129, 255, 256, 1000]
_ENOUGH = 1 << 16
"""Bytes that are written of a tree; inputs are shorter."""
_DEPTHS = [1, 2, 16, 100, 500, 1500]
_TEXTS = [
    "",
    "a",
    "é",
    "e\u0301",
    "\0",
    "\n",
    "..",
    "/",
    "a/b",
    "\u202e",
    "\uffff",
    "\U0001f600",
    "0" * 300,
    "[",
    "{",
    "%s",
]
_NAMES = [b"", b".", b"..", b"a", b"a/b", b"/", b"a//b", b".p2psync", b".P2PSYNC/x", b"\0", b"\xff\xfe", b"a" * 256]


class Mutator:
    """Makes new inputs out of `seeds` and of what it is given. `shape` is a key of `SHAPES`."""

    def __init__(self, seeds: Sequence[bytes], shape: str) -> None:
        self._seeds = list(seeds) or [b""]
        self._shape = SHAPES[shape]

    def mutate(self, data: bytes, rng: Random, limit: int) -> bytes:
        """Another input, of at most `limit` bytes."""
        if rng.random() < 0.05:
            data = rng.choice(self._seeds)
        return self._shape(data, rng.choice(self._seeds), rng)[:limit]

    def fresh(self, rng: Random, limit: int) -> bytes:
        """A seed with a few changes."""
        data = rng.choice(self._seeds)
        for _ in range(rng.randrange(4)):
            data = self.mutate(data, rng, limit)
        return data


# ── bytes and text ──────────────────────────────────────────────────────────────────────────────────────────────────
def mutate_bytes(data: bytes, other: bytes, rng: Random) -> bytes:
    """Flip, cut, repeat, insert, overwrite or splice."""
    at, size = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 4, 8, rng.randrange(1, 64)))
    match rng.randrange(8):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + data[at + size :]
        case 2:
            return data[:at] + data[at : at + size] * rng.choice((2, 3, 30)) + data[at + size :]
        case 3:
            return data[:at] + rng.randbytes(size) + data[at:]
        case 4:
            return data[:at] + rng.randbytes(size) + data[at + size :]
        case 5:
            return data[:at] + rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * size + data[at + size :]
        case 6:
            cut = rng.randrange(len(other) + 1)
            return data[:at] + other[cut : cut + rng.choice((size, len(other)))] + data[at:]
        case _:
            if at == len(data):
                return data + b"\0"
            return data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]


def mutate_text(data: bytes, other: bytes, rng: Random) -> bytes:
    """As bytes, or with a troublesome piece of text, or line by line."""
    pick = rng.random()
    if pick < 0.4:
        return mutate_bytes(data, other, rng)
    if pick < 0.6:
        at = rng.randrange(len(data) + 1)
        return data[:at] + rng.choice(_TEXTS).encode() * rng.choice((1, 1, 1, 5, 200)) + data[at:]
    if pick < 0.7:
        at = rng.randrange(len(data) + 1)
        return (
            data[:at]
            + rng.choice((b" ", b"\t", b"[", b"*", b"9", b"-", b"a", b'"', b"=")) * rng.choice(_LENGTHS)
            + data[at:]
        )
    lines, others = data.split(b"\n"), other.split(b"\n")
    at = rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, rng.choice(others))
        case 2:
            lines[at] = mutate_bytes(lines[at], rng.choice(others), rng)
        case 3:
            lines[at] = lines[at].swapcase()
        case _:
            rng.shuffle(lines)
    return b"\n".join(lines)


def after_first_byte(data: bytes, other: bytes, rng: Random) -> bytes:
    """The first byte chooses a case: it is kept, mostly."""
    if not data or rng.random() < 0.05:
        return mutate_bytes(data, other, rng)
    return data[:1] + mutate_bytes(data[1:], other[1:], rng)


# ── trees ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def mutate_msgpack(data: bytes, other: bytes, rng: Random) -> bytes:
    """Change a MessagePack tree, or the way it is written; bytes where it is none."""
    if rng.random() < 0.15:
        return mutate_bytes(data, other, rng)
    try:
        tree, donor = _read(data), _read(other) if rng.random() < 0.3 else None
    except ValueError:
        return mutate_bytes(data, other, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        tree = _change(tree, donor, rng)
    return write_msgpack(tree, rng if rng.random() < 0.1 else None)


def msgpack_after_first_byte(data: bytes, other: bytes, rng: Random) -> bytes:
    """The first byte chooses a case, a tree follows."""
    if not data or rng.random() < 0.05:
        return mutate_bytes(data, other, rng)
    return data[:1] + mutate_msgpack(data[1:], other[1:], rng)


def mutate_json(data: bytes, other: bytes, rng: Random) -> bytes:
    """Change a JSON tree; text where it is none."""
    if rng.random() < 0.25:
        return mutate_text(data, other, rng)
    try:
        tree, donor = json.loads(data), json.loads(other) if rng.random() < 0.3 else None
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            tree = _change(tree, donor, rng)
        return json.dumps(tree, default=lambda value: value.decode("latin-1"), ensure_ascii=rng.random() < 0.5).encode()
    except (ValueError, RecursionError, TypeError):
        return mutate_text(data, other, rng)


def _change(tree: Tree, donor: Tree, rng: Random) -> Tree:
    """The tree with one place changed: each step goes a level down, or changes what is here."""
    if rng.random() < 0.75:
        if isinstance(tree, list) and tree:
            tree = list(tree)
            at = rng.randrange(len(tree))
            tree[at] = _change(tree[at], donor, rng)
            return tree
        if isinstance(tree, dict) and tree:
            key = rng.choice(list(tree))
            return {**tree, key: _change(tree[key], donor, rng)}
        if isinstance(tree, bytes) and len(tree) > 8 and rng.random() < 0.7:
            try:
                inner = _read(tree)
            except ValueError:
                inner = None
            if isinstance(inner, list):
                return write_msgpack(_change(inner, donor, rng), None)
    if rng.random() < 0.2:
        return _any(tree, donor, rng)
    match tree:
        case bool() | None:
            return _any(tree, donor, rng)
        case int():
            number = rng.choice((tree + 1, tree - 1, -tree, tree ^ 1 << rng.randrange(64), rng.choice(_NUMBERS)))
            return number if -(2**63) <= number < 2**64 else number % 2**64
        case float():
            return rng.choice((0.0, -1.0, 1e308, float("inf"), float("nan"), 5e-324))
        case bytes():
            return _change_bytes(tree, donor, rng)
        case str():
            return rng.choice((tree[:-1], tree * 2, rng.choice(_TEXTS), tree + rng.choice(_TEXTS), tree.upper()))
        case list():
            return _change_list(tree, donor, rng)
        case dict():
            key = rng.choice([*tree, "later"])
            return rng.choice(({k: v for k, v in tree.items() if k != key}, {**tree, key: _any(key, donor, rng)}))
        case _:
            return _any(tree, donor, rng)


def _change_bytes(data: bytes, donor: Tree, rng: Random) -> bytes:
    match rng.randrange(5):
        case 0:
            return rng.choice(_NAMES)
        case 1:
            return data.ljust(1, b"x") * rng.choice((2, 3)) if len(data) < 512 else data[:32]
        case 2:
            return (data + bytes(1000))[: rng.choice(_LENGTHS)]
        case 3:
            found = _pick(donor, rng)
            return found if isinstance(found, bytes) else data[::-1]
        case _:
            return mutate_bytes(data, b"", rng)


def _change_list(items: list[Tree], donor: Tree, rng: Random) -> list[Tree]:
    items = list(items)
    at = rng.randrange(len(items)) if items else 0
    match rng.randrange(8):
        case 0:
            return items[:at]
        case 1:
            del items[at : at + 1]
        case 2:
            items[at:at] = items[at : at + 1]
        case 3:
            rng.shuffle(items)
        case 4:
            items.insert(at, _any(None, donor, rng))
        case 5:
            items.append(_pick(list(items), rng))
        case 6:
            items += items * rng.choice((1, 1, 5, 40))
            return items[:300]
        case _:
            items.reverse()
    return items


def _any(tree: Tree, donor: Tree, rng: Random) -> Tree:
    """Something of another kind, or of another place."""
    match rng.randrange(9):
        case 0:
            return None
        case 1:
            return rng.random() < 0.5
        case 2:
            return rng.choice(_NUMBERS)
        case 3:
            return rng.randbytes(rng.choice(_LENGTHS[:15]))
        case 4:
            return rng.choice(_TEXTS)
        case 5:
            return rng.choice(([], {}, 1.5, float("nan")))
        case 6:
            for _ in range(rng.choice(_DEPTHS)):
                tree = [tree]
            return tree
        case 7:
            return tree.decode("latin-1") if isinstance(tree, bytes) else [tree, tree]
        case _:
            return _pick(donor, rng)


def _pick(tree: Tree, rng: Random) -> Tree:
    """Some part of a tree."""
    while isinstance(tree, list | dict) and tree and rng.random() < 0.7:
        tree = rng.choice(list(tree.values()) if isinstance(tree, dict) else tree)
    return tree


def _read(data: bytes) -> Tree:
    """ValueError unless these bytes are one MessagePack value."""
    try:
        return msgspec.msgpack.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError, TypeError) as error:
        raise ValueError(str(error)) from None


def write_msgpack(tree: Tree, rng: Random | None) -> bytes:
    """MessagePack of a tree of any depth; with `rng`, here and there longer than need be or with a false length."""
    if rng is None:
        with suppress(RecursionError, OverflowError):
            return msgspec.msgpack.encode(tree)[:_ENOUGH]
    out = bytearray()
    pending = [tree]
    while pending and len(out) < _ENOUGH:
        value = pending.pop()
        match value:
            case list():
                out += _head(len(value), 0x90, 16, 0xDC, rng)
                pending.extend(reversed(value))
            case dict():
                out += _head(len(value), 0x80, 16, 0xDE, rng)
                for key, item in reversed(value.items()):
                    pending += [item, key]
            case bytes():
                odd = rng is not None and rng.random() < 0.2
                size = _length(len(value), rng)
                out += (b"\xc6" + struct.pack(">I", size) if odd or size > 255 else b"\xc4" + bytes((size,))) + value
            case int() if not isinstance(value, bool) and rng is not None and 0 <= value < 2**64 and rng.random() < 0.2:
                out += b"\xcf" + struct.pack(">Q", value)
            case int() if not -(2**63) <= value < 2**64:
                out += b"\xcf" + struct.pack(">Q", value % 2**64)
            case _:
                out += msgspec.msgpack.encode(value)
    return bytes(out)


def _head(size: int, short: int, limit: int, long: int, rng: Random | None) -> bytes:
    size = _length(size, rng)
    if size < limit and not (rng is not None and rng.random() < 0.2):
        return bytes((short | size,))
    return bytes((long + 1,)) + struct.pack(">I", size) if size > 65535 else bytes((long,)) + struct.pack(">H", size)


def _length(size: int, rng: Random | None) -> int:
    return (
        rng.choice((size + 1, max(size - 1, 0), 2**31, 2**32 - 1)) if rng is not None and rng.random() < 0.1 else size
    )


Shape = Callable[[bytes, bytes, Random], bytes]
SHAPES: dict[str, Shape] = {
    "bytes": mutate_bytes,
    "text": mutate_text,
    "case": after_first_byte,
    "msgpack": mutate_msgpack,
    "msgpack case": msgpack_after_first_byte,
    "json": mutate_json,
}
"""How inputs of a target are changed, by name. A shape takes an input, another one to borrow from, and the chance."""
