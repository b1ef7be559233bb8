"""Looks for secrets in files, in every spelling in which a program might have written them down."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, quote_plus

_PREFIX = 8


def spellings(secret: bytes) -> set[bytes]:
    """As it is, in hex, Base64 of both alphabets wherever it stands in what is encoded, Base32, escaped for URL, JSON
    and Python.
    """
    text = secret.decode("utf-8", "surrogateescape")
    shown = secret.decode("latin-1")
    found = {secret, secret.hex().encode(), secret.hex().upper().encode(), repr(secret)[2:-1].encode()}
    for words in (text, shown):
        clean = words.encode("utf-8", "replace").decode()
        found |= {json.dumps(clean)[1:-1].encode(), json.dumps(clean, ensure_ascii=False)[1:-1].encode()}
        found |= {repr(clean)[1:-1].encode()}
    found |= {quote(secret, safe="").encode(), quote(secret).encode(), quote_plus(secret).encode()}
    found |= {quote(secret, safe="").lower().encode()}
    found.add(base64.b32encode(secret).rstrip(b"="))
    for before, skipped in ((0, 0), (1, 2), (2, 3)):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(bytes(before) + secret).rstrip(b"=")[skipped:]
            # The last character holds bits of what follows, unless it ends there.
            found.add(encoded[:-1] if (before + len(secret)) % 3 else encoded)
    return found


@dataclass(slots=True)
class Search:
    """Many secrets at once; each is found in all its spellings."""

    secrets: dict[bytes, str] = field(default_factory=dict)
    """What each is."""
    _spelt: dict[bytes, list[tuple[bytes, bytes]]] = field(default_factory=dict)

    def plant(self, secret: bytes | str, what: str) -> None:
        """Look for this from now on; at least 8 bytes, else it is found by chance."""
        if isinstance(secret, str):
            secret = secret.encode()
        if secret in self.secrets:
            return
        assert len(secret) >= _PREFIX
        self.secrets[secret] = what
        for spelt in spellings(secret):
            self._spelt.setdefault(spelt[:_PREFIX], []).append((spelt, secret))

    def found_in(self, data: bytes) -> set[bytes]:
        """Which of the secrets are in there."""
        prefixes = self._spelt
        return {
            secret
            for at in range(len(data) - _PREFIX + 1)
            if (several := prefixes.get(data[at : at + _PREFIX])) is not None
            for spelt, secret in several
            if data.startswith(spelt, at)
        }

    def report(self, paths: Iterable[Path], *, also: set[str] = frozenset()) -> Iterator[str]:  # type: ignore[assignment]
        """A line for each secret in each file, but for those of a kind in `also`, which may be there."""
        for path in paths:
            for secret in sorted(self.found_in(path.read_bytes())):
                if self.secrets[secret] not in also:
                    yield f"{self.secrets[secret]} {secret!r} is in {path}"


def files_below(directory: Path) -> list[Path]:
    """Every file, in order."""
    return sorted(path for path in directory.rglob("*") if path.is_file())
