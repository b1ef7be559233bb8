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
import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass

from p2psync.crypto.identity import KEY_SIZE, SIGNATURE_SIZE, DeviceKeys, verify_message
from p2psync.errors import AuthenticationError, InputError
from p2psync.model.hashing import DIGEST_SIZE
from p2psync.model.ids import DeviceId, device_id_of

NONCE_SIZE = 16
MAX_TARGET = 8192
"""Bytes of path and query together."""
MAX_AUTHORIZATION = 512

_TAG = "p2psync"
_METHOD = re.compile(r"[A-Z]{1,16}")
_PATH = re.compile(r"/[!-~]*")
_QUERY = re.compile(r"[!-~]*")
_RELAY = re.compile(r"[\w.:=-]{1,300}", re.ASCII)
_AUTHORIZATION = re.compile(r"[!-~]+(?: [!-~]+)*")
_INPUT = re.compile(
    r'p2p=(\("@method" "@path" "@query" "p2psync-relay"( "content-digest")?( "authorization")?\)'
    r';created=([1-9][0-9]{0,14});nonce="([\w-]{22})";keyid="([\w-]{43})";tag="p2psync")',
    re.ASCII,
)
_SIGNATURE = re.compile(r"p2p=:([A-Za-z0-9+/]{86}==):")
_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")
_RELAY_FIELD = "p2psync-relay"
_OPTIONAL = ("content-digest", "authorization")
_READ = {name.encode() for name in (_RELAY_FIELD, *_OPTIONAL, "signature-input", "signature")}
_MAX_FIELD = 1024


@dataclass(frozen=True, slots=True)
class Signed:
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
    signature = keys.sign_message(_signature_base(method, path, query, fields, parameters))
    fields["signature-input"] = f"p2p={parameters}"
    fields["signature"] = f"p2p=:{base64.b64encode(signature).decode()}:"
    return fields


def verify_request(method: str, path: bytes, query: bytes, headers: Iterable[tuple[bytes, bytes]]) -> Signed:
    """Check the signature of a request by its head, as ASGI gives it: raw path, raw query, fields in lower case.

    AuthenticationError when it is missing, malformed, given twice, or not by the key it names. The caller goes on
    with `Signed.relay`, and with `Signed.check_body` once it has the body.
    """
    try:
        fields = _read_fields(headers)
        given = _INPUT.fullmatch(fields.pop("signature-input"))
        signature = _SIGNATURE.fullmatch(fields.pop("signature"))
        if given is None or signature is None:
            raise AuthenticationError("a request's signature is malformed")
        parameters, with_digest, with_authorization, created, nonce, key = given.groups()
        if [name in fields for name in _OPTIONAL] != [with_digest is not None, with_authorization is not None]:
            raise AuthenticationError("a request's signature does not cover what it must")
        signing_key = _decode_url(key, KEY_SIZE)
        base = _signature_base(method, path.decode("ascii"), query.decode("ascii"), fields, parameters)
        verify_message(signing_key, base, _decode(signature[1], SIGNATURE_SIZE))
        return Signed(
            fields[_RELAY_FIELD],
            signing_key,
            int(created),
            _decode_url(nonce, NONCE_SIZE),
            fields.get("authorization"),
            _read_digest(fields["content-digest"]) if with_digest else None,
        )
    except (KeyError, InputError, UnicodeDecodeError):
        raise AuthenticationError("a request is not signed as it must be") from None


def _signature_base(method: str, path: str, query: str, fields: dict[str, str], parameters: str) -> bytes:
    """The bytes to sign (RFC 9421, section 2.5). InputError when a part could be mistaken for another."""
    relay, authorization = fields[_RELAY_FIELD], fields.get("authorization", "-")
    if not (
        _METHOD.fullmatch(method)
        and len(path) + len(query) <= MAX_TARGET
        and _PATH.fullmatch(path)
        and not {"?", "#"} & set(path)
        and _QUERY.fullmatch(query)
        and "#" not in query
        and _RELAY.fullmatch(relay)
        and len(authorization) <= MAX_AUTHORIZATION
        and _AUTHORIZATION.fullmatch(authorization)
    ):
        raise InputError("a request with this method, target, relay or authorization cannot be signed")
    lines = [f'"@method": {method}', f'"@path": {path}', f'"@query": ?{query}']
    lines += [f'"{name}": {fields[name]}' for name in (_RELAY_FIELD, *_OPTIONAL) if name in fields]
    lines.append(f'"@signature-params": {parameters}')
    return "\n".join(lines).encode("ascii")


def _read_fields(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in headers:
        if name not in _READ:
            continue
        if name.decode() in fields or len(value) > _MAX_FIELD:
            raise AuthenticationError("a request's signature is given twice or is too long")
        fields[name.decode()] = value.decode("ascii")
    return fields


def _read_digest(text: str) -> bytes:
    found = _DIGEST.fullmatch(text)
    if found is None:
        raise InputError("a Content-Digest holds one sha-256")
    return _decode(found[1], DIGEST_SIZE)


def _decode(text: str, size: int) -> bytes:
    data = base64.b64decode(text)
    if len(data) != size or base64.b64encode(data).decode() != text:
        raise InputError("base64 that is not the one encoding of its bytes")
    return data


def _encode_url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode_url(text: str, size: int) -> bytes:
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if len(data) != size or _encode_url(data) != text:
        raise InputError("base64 that is not the one encoding of its bytes")
    return data
