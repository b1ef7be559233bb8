"""Signed requests: what is signed cannot be changed, moved or said twice, and the form is the standard's."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.crypto.identity import DeviceKeys, verify_message
from p2psync.errors import AuthenticationError, InputError
from p2psync.protocol import http_signature
from p2psync.protocol.http_signature import Signed, sign_request, verify_request

KEYS, OTHER = DeviceKeys(bytes(range(64))), DeviceKeys(bytes(range(64, 128)))
NONCE = bytes(range(16))
TOKEN = "Bearer AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
CREATED = 1_800_000_000
RELAY = "relay.example"
BODY = b'{"hello": "world"}'
PATH, QUERY = "/api/v1/objects/caf%C3%A9", "local_object_id=7&device_id=A"

FIELDS = [b"signature", b"signature-input", b"p2psync-relay", b"content-digest", b"authorization"]
Headers = list[tuple[bytes, bytes]]


def signed(body: bytes = BODY, authorization: str | None = TOKEN) -> Headers:
    fields = sign_request(
        KEYS, RELAY, "POST", PATH, QUERY, body=body, authorization=authorization, created=CREATED, nonce=NONCE
    )
    return [(name.encode(), value.encode()) for name, value in fields.items()]


def verify(headers: Headers, body: bytes = BODY) -> Signed:
    return verify_raw("POST", PATH.encode(), QUERY.encode(), [(b"host", b"relay"), *headers], body)


def verify_raw(method: str, path: bytes, query: bytes, headers: Headers, body: bytes) -> Signed:
    result = verify_request(method, path, query, headers)
    result.check_body(hashlib.sha256(body).digest())
    return result


def replaced(headers: Headers, name: bytes, value: bytes) -> Headers:
    return [(n, value if n == name else v) for n, v in headers]


@pytest.mark.parametrize("body", [BODY, b""])
@pytest.mark.parametrize("authorization", [TOKEN, None])
def test_round_trip(body: bytes, authorization: str | None) -> None:
    result = verify(signed(body, authorization), body=body)
    assert result.relay == RELAY
    assert (result.signing_key, result.device_id) == (KEYS.card.signing_key, KEYS.device_id)
    assert (result.created, result.nonce, result.authorization) == (CREATED, NONCE, authorization)
    assert result.body_digest == (hashlib.sha256(body).digest() if body else None)


def test_golden_vector() -> None:
    made = sign_request(KEYS, RELAY, "POST", PATH, QUERY, body=BODY, authorization=TOKEN, created=CREATED, nonce=NONCE)
    assert made == {
        "p2psync-relay": RELAY,
        "content-digest": "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:",
        "authorization": TOKEN,
        "signature-input": 'p2p=("@method" "@path" "@query" "p2psync-relay" "content-digest" "authorization")'
        ';created=1800000000;nonce="AAECAwQFBgcICQoLDA0ODw";keyid="A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg";tag="p2psync"',
        "signature": "p2p=:6JQhy8banzQmPyHXhW1JqBRJwNjLPoyZwq/dxbRJIHFfDYEmMsqAUkRyvZGAMWyYXlyt5LUYHtiStcNyOzhJAQ==:",
    }


def test_agrees_with_the_standard() -> None:
    """RFC 9421, B.2.6: the form of the signed bytes is checked by a signature that is not ours."""
    base = (
        '"date": Tue, 20 Apr 2021 02:07:55 GMT\n"@method": POST\n"@path": /foo\n"@authority": example.com\n'
        '"content-type": application/json\n"content-length": 18\n"@signature-params": ("date" "@method" "@path" '
        '"@authority" "content-type" "content-length");created=1618884473;keyid="test-key-ed25519"'
    )
    signature = "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw=="
    key = base64.urlsafe_b64decode("JrQLj5P_89iXES9-vFgrIy29clF9CC_oPPsw3c5D0bs=")
    verify_message(key, base.encode(), base64.b64decode(signature))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_changed_byte_is_refused(data: st.DataObject) -> None:
    """Method, path, query, relay, body, token, digest, time, nonce, key, signature: one byte of one is another."""
    headers = signed()
    parts = {"method": b"POST", "path": PATH.encode(), "query": QUERY.encode(), "body": BODY}
    parts |= {name.decode(): value for name, value in headers}
    what = data.draw(st.sampled_from(sorted(parts)))
    value = bytearray(parts[what])
    at = data.draw(st.integers(0, len(value) - 1))
    match data.draw(st.sampled_from(["change", "drop", "insert"])):
        case "change":
            value[at] ^= data.draw(st.integers(1, 255))
        case "drop":
            del value[at]
        case _:
            value.insert(at, data.draw(st.integers(0, 255)))
    if bytes(value) == parts[what]:
        return
    parts[what] = bytes(value)
    changed = [(name, parts[name.decode()]) for name, _ in headers]
    with pytest.raises(AuthenticationError):
        verify_raw(parts["method"].decode("latin-1"), parts["path"], parts["query"], changed, parts["body"])


@pytest.mark.parametrize("name", FIELDS)
def test_nothing_is_left_out_doubled_or_uncovered(name: bytes) -> None:
    headers = signed()
    field = next(pair for pair in headers if pair[0] == name)
    with pytest.raises(AuthenticationError):
        verify([pair for pair in headers if pair != field])
    with pytest.raises(AuthenticationError):
        verify([*headers, field])
    if name in {b"content-digest", b"authorization"}:
        bare = signed(b"", None)
        verify(bare, b"")
        with pytest.raises(AuthenticationError):
            verify([*bare, field], body=b"")


@pytest.mark.parametrize(
    "covered",
    [
        '"@method" "@path" "@query" "p2psync-relay"',
        '"@method" "@path" "@query" "p2psync-relay" "authorization"',
        '"@method" "@path" "@query" "content-digest" "authorization"',
    ],
)
def test_what_is_signed_is_what_is_listed(covered: str) -> None:
    """Signed bytes that hold more than the parameters say would be no signature of the standard."""
    fields = dict(signed())
    given = fields[b"signature-input"].decode()
    parameters = f"({covered})" + given[given.index(")") + 1 :]
    parts = {name: fields[name.encode()].decode() for name in ("p2psync-relay", "content-digest", "authorization")}
    signature = KEYS.sign_message(http_signature._signature_base("POST", PATH, QUERY, parts, parameters).encode())
    fields[b"signature-input"] = f"p2p={parameters}".encode()
    fields[b"signature"] = b"p2p=:" + base64.b64encode(signature) + b":"
    with pytest.raises(AuthenticationError):
        verify(list(fields.items()), b"")


def test_a_body_cannot_be_added_or_taken() -> None:
    with pytest.raises(AuthenticationError):
        verify(signed(b""), body=b"x")
    with pytest.raises(AuthenticationError):
        verify(signed(), body=b"")


def test_the_key_named_must_be_the_key_that_signed() -> None:
    headers = signed()
    parameters = next(value for name, value in headers if name == b"signature-input")
    key = base64.urlsafe_b64encode(OTHER.card.signing_key).rstrip(b"=")
    mine = base64.urlsafe_b64encode(KEYS.card.signing_key).rstrip(b"=")
    with pytest.raises(AuthenticationError):
        verify(replaced(headers, b"signature-input", parameters.replace(mine, key)))


def test_there_is_one_encoding_of_everything() -> None:
    """Bits that base64 leaves unused are zero, numbers have no leading zeros, and nothing may stand around."""
    headers = signed()
    fields = dict(headers)
    for name, old, new in (
        (b"signature", b"==:", b"==: "),
        (b"signature", b"Q==:", b"R==:"),
        (b"signature-input", b'w";keyid', b'x";keyid'),
        (b"signature-input", b"created=", b"created=0"),
        (b"signature-input", b'"@method" "@path"', b'"@path" "@method"'),
        (b"signature-input", b'tag="p2psync"', b'tag="p2psync";alg="ed25519"'),
        (b"signature-input", b"p2p=", b"sig=("),
        (b"content-digest", b"sha-256=", b"sha-512="),
    ):
        assert old in fields[name]
        with pytest.raises(AuthenticationError):
            verify(replaced(headers, name, fields[name].replace(old, new)))


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=20),
    st.binary(max_size=30),
    st.binary(max_size=30),
    st.lists(
        st.tuples(
            st.sampled_from([*FIELDS, b"cookie"]),
            st.binary(max_size=60),
        ),
        max_size=6,
    ),
)
def test_only_our_errors_leave_the_parser(method: str, path: bytes, query: bytes, headers: Headers) -> None:
    with pytest.raises(AuthenticationError):
        verify_request(method, path, query, headers)


def test_what_could_be_mistaken_is_not_signed() -> None:
    for method, path, query, authorization in (
        ("get", "/", "", None),
        ("GET", "", "", None),
        ("GET", "/a b", "", None),
        ("GET", '/a\n"@query": ?', "", None),
        ("GET", "/a?b", "", None),
        ("GET", "/", "a#b", None),
        ("GET", "/" + "a" * 9000, "", None),
        ("GET", "/", "", "Bearer a\nb"),
        ("GET", "/", "", "Bearer  a"),
        ("GET", "/", "", "B" * 600),
    ):
        with pytest.raises(InputError):
            sign_request(KEYS, RELAY, method, path, query, authorization=authorization, created=CREATED, nonce=NONCE)
    for created, nonce in ((0, NONCE), (10**15, NONCE), (CREATED, b"short")):
        with pytest.raises(InputError):
            sign_request(KEYS, RELAY, "GET", "/", created=created, nonce=nonce)
    for relay in ("", "a b", 'a\n"@query": ?', "a" * 301):
        with pytest.raises(InputError):
            sign_request(KEYS, relay, "GET", "/", created=CREATED, nonce=NONCE)


def test_fields_are_bounded_before_they_are_parsed() -> None:
    with pytest.raises(AuthenticationError):
        verify(replaced(signed(), b"signature", b"p2p=:" + b"A" * 100_000 + b":"))
