"""Requests to a relay are signed by the device that makes them, so that a stolen token is worth nothing.

A fixed subset of HTTP Message Signatures (RFC 9421) and Digest Fields (RFC 9530): one signature called `p2p`, Ed25519,
over method, path, query, the relay that is meant, and, when they are there, the body's digest and the authorization;
the parameters are the time, a nonce, the public key and a tag, in this order and no other:

    P2PSync-Relay: relay.example
    Content-Digest: sha-256=:BASE64:
    Signature-Input: p2p=("@method" "@path" "@query" "p2psync-relay" "content-digest" "authorization");created=N;
                     nonce="N";keyid="K";tag="p2psync"                                                   (on one line)
    Signature: p2p=:BASE64:

The relay is named by what TLS has proven of it (`RelayAddress.identity`), so that no relay can use a request that was
meant for another; each knows by which names it may be meant.
`keyid` is the signing key itself, whose hash is the device ID: a request proves by itself who made it, also where the
relay has never heard of the device. Whether that device may do what it asks, and whether it asked before, is for the
relay to decide. The signed bytes begin with a quotation mark, and labels of other signatures with a letter: neither can
pass for the other.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping

import msgspec

from p2psync.crypto.identity import KEY_SIZE, DeviceKeys, verify_message
from p2psync.errors import AuthenticationError, InputError
from p2psync.model.ids import DeviceId, device_id_of

NONCE_SIZE = 16
MAX_TARGET = 8192
"""Bytes of path and query together."""
MAX_AUTHORIZATION = 512

_TAG = "p2psync"
# Base64 of 32 and of 64 bytes: bits that the last character leaves unused are zero, so that there is one text of each.
_BASE64_32 = "[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]="
_BASE64_64 = "[A-Za-z0-9+/]{85}[AQgw]=="
_URL_16, _URL_32 = r"[\w-]{21}[AQgw]", r"[\w-]{42}[AEIMQUYcgkosw048]"
_SIGNED = re.compile(
    r'"@method": [A-Z]{1,16}\n'
    r'"@path": /[!"$->@-~]*\n'
    r'"@query": \?[!"$-~]*\n'
    r'"p2psync-relay": [\w.:=-]{1,300}\n'
    rf'("content-digest": sha-256=:({_BASE64_32}):\n)?'
    rf'("authorization": (?=[^\n]{{1,{MAX_AUTHORIZATION}}}\n)[!-~]+(?: [!-~]+)*\n)?'
    r'"@signature-params": \("@method" "@path" "@query" "p2psync-relay"(?(1) "content-digest")(?(3) "authorization")\)'
    rf';created=([1-9][0-9]{{0,14}});nonce="({_URL_16})";keyid="({_URL_32})";tag="{_TAG}"',
    re.ASCII,
)
"""What is signed (RFC 9421, section 2.5): no part can be mistaken for another, and what is there is covered."""
_SIGNATURE = re.compile(f"p2p=:({_BASE64_64}):")
_LABEL = "p2p="
_STANDARD = str.maketrans("-_", "+/")
_RELAY_FIELD = "p2psync-relay"
_OPTIONAL = ("content-digest", "authorization")
_READ = {name.encode(): name for name in (_RELAY_FIELD, *_OPTIONAL, "signature-input", "signature")}
_MAX_FIELD = 1024


class Signed(msgspec.Struct, frozen=True):
    """What a valid signature vouches for. Freshness is not checked here: see `created` and `nonce`."""

    relay: str
    """The relay that it is for, as the device knows it: the caller compares."""
    signing_key: bytes
    """Ed25519 public key of the device that made the request, 32 bytes."""
    created: int
    """Seconds since the epoch, by the device's clock."""
    nonce: bytes
    """16 bytes, different in every request of a device."""
    authorization: str | None
    """The Authorization field, exactly as signed; None when there is none."""
    body_digest: bytes | None
    """SHA-256 that the body must have; None when it must be empty."""

    @property
    def device_id(self) -> DeviceId:
        """The device that made the request."""
        return device_id_of(self.signing_key)

    def check_body(self, digest: bytes) -> None:
        """AuthenticationError unless `digest`, the SHA-256 of the body received, is what was signed."""
        if not hmac.compare_digest(digest, self.body_digest or hashlib.sha256().digest()):
            raise AuthenticationError("a request's body is not what was signed")


def sign_request(
    keys: DeviceKeys,
    relay: str,
    method: str,
    path: str,
    query: str = "",
    *,
    body: bytes | memoryview = b"",
    authorization: str | None = None,
    created: int,
    nonce: bytes,
) -> dict[str, str]:
    """The header fields to add to a request, names in lower case. InputError when it cannot be sent in that form.

    `relay` is the `RelayAddress.identity` of where it goes. `path` and `query` are as on the wire: percent-encoded, the
    query without its question mark. `nonce` is 16 fresh random bytes, `created` seconds since the epoch as the relay
    counts them.
    """
    if len(nonce) != NONCE_SIZE or not 0 < created < 10**15:
        raise InputError(f"a request is signed with {NONCE_SIZE} random bytes and a time since 1970")
    fields = {_RELAY_FIELD: relay}
    if body:
        fields["content-digest"] = f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"
    if authorization is not None:
        fields["authorization"] = authorization
    covered = " ".join(f'"{name}"' for name in ("@method", "@path", "@query", *fields))
    parameters = (
        f'({covered});created={created};nonce="{_encode_url(nonce)}"'
        f';keyid="{_encode_url(keys.card.signing_key)}";tag="{_TAG}"'
    )
    base = _signature_base(method, path, query, fields, parameters)
    if len(path) + len(query) > MAX_TARGET or _SIGNED.fullmatch(base) is None:
        raise InputError("a request with this method, target, relay or authorization cannot be signed")
    fields["signature-input"] = f"{_LABEL}{parameters}"
    fields["signature"] = f"p2p=:{base64.b64encode(keys.sign_message(base.encode())).decode()}:"
    return fields


def verify_request(method: str, path: bytes, query: bytes, headers: Iterable[tuple[bytes, bytes]]) -> Signed:
    """Check the signature of a request by its head, as ASGI gives it: raw path, raw query, fields in lower case.

    AuthenticationError when it is missing, malformed, given twice, or not by the key it names. The caller goes on
    with `Signed.relay`, and with `Signed.check_body` once it has the body.
    """
    try:
        fields = _read_fields(headers)
        signature, parameters = _SIGNATURE.fullmatch(fields["signature"]), fields["signature-input"]
        base = _signature_base(method, path.decode("ascii"), query.decode("ascii"), fields, parameters[len(_LABEL) :])
    except (KeyError, UnicodeDecodeError):
        raise AuthenticationError("a request is not signed as it must be") from None
    found = _SIGNED.fullmatch(base)
    if found is None or signature is None or not parameters.startswith(_LABEL) or len(path) + len(query) > MAX_TARGET:
        raise AuthenticationError("a request's signature is malformed, or does not cover what it must")
    _, digest, _, created, nonce, key = found.groups()
    signing_key = _decode_url(key, KEY_SIZE)
    verify_message(signing_key, base.encode(), binascii.a2b_base64(signature[1]))
    return Signed(
        fields[_RELAY_FIELD],
        signing_key,
        int(created),
        _decode_url(nonce, NONCE_SIZE),
        fields.get("authorization"),
        None if digest is None else binascii.a2b_base64(digest),
    )


def _signature_base(method: str, path: str, query: str, fields: Mapping[str, str], parameters: str) -> str:
    """The text to sign (RFC 9421, section 2.5), good only where it is of the form `_SIGNED`."""
    optional = "".join(f'"{name}": {fields[name]}\n' for name in _OPTIONAL if name in fields)
    return (
        f'"@method": {method}\n"@path": {path}\n"@query": ?{query}\n"{_RELAY_FIELD}": {fields[_RELAY_FIELD]}\n'
        f'{optional}"@signature-params": {parameters}'
    )


def _read_fields(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for field, value in headers:
        name = _READ.get(field)
        if name is None:
            continue
        if name in fields or len(value) > _MAX_FIELD:
            raise AuthenticationError("a request's signature is given twice or is too long")
        fields[name] = value.decode("ascii")
    return fields


def _encode_url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode_url(text: str, size: int) -> bytes:
    """Of text that was checked to be the one encoding of so many bytes."""
    return binascii.a2b_base64(text.translate(_STANDARD) + "=" * (-size % 3))
