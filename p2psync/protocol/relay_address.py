"""Reads the URL of a relay: where it is and how it is recognised."""

from __future__ import annotations

import base64
import re
from ipaddress import IPv6Address
from urllib.parse import urlsplit

from p2psync.errors import InputError
from p2psync.model.hashing import DIGEST_SIZE
from p2psync.ports import RelayAddress

DEFAULT_PORT = 443
MAX_URL = 512
_PIN = re.compile(r"sha256=([\w-]{43})", re.ASCII)
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_EXAMPLE = (
    "it looks like https://HOST:PORT/ or https://HOST:PORT/#sha256=FINGERPRINT, as the relay prints it at its start"
)


def parse_relay_address(text: str) -> RelayAddress:
    """Read a relay's URL, as `str` of its address writes it. InputError says what is wrong with it."""
    try:
        if len(text) > MAX_URL:
            raise ValueError("too long")
        # urlsplit leaves out some control characters without a word.
        if not text.isprintable() or "%" in text:
            raise ValueError("not printable")
        parts = urlsplit(text.strip())
        host, port = parts.hostname or "", parts.port
        if parts.scheme != "https" or parts.path not in ("", "/") or parts.query or "@" in parts.netloc:
            raise ValueError("neither path nor user belongs there")
        if ":" in host:
            host = str(IPv6Address(host))
        elif not _HOST.fullmatch(host):
            raise ValueError("no such host")
        if port == 0:
            raise ValueError("no such port")
        return RelayAddress(host, port or DEFAULT_PORT, _read_pin(parts.fragment))
    except ValueError:
        raise InputError(f"this is not the URL of a relay; {_EXAMPLE}") from None


def _read_pin(fragment: str) -> bytes | None:
    """The fingerprint in a fragment; None for none. ValueError for anything else: a pin is never silently dropped."""
    if not fragment:
        return None
    found = _PIN.fullmatch(fragment)
    if found is None:
        raise ValueError("no fingerprint")
    pin = base64.urlsafe_b64decode(found[1] + "=")
    if len(pin) != DIGEST_SIZE or base64.urlsafe_b64encode(pin).decode() != found[1] + "=":
        raise ValueError("no fingerprint")
    return pin
