"""TLS with a relay: recognised by the fingerprint in its URL, or else by an authority that this machine trusts."""

from __future__ import annotations

import hmac
import ssl
from hashlib import sha256

from p2psync.errors import AuthenticationError


def relay_context(fingerprint: bytes | None) -> ssl.SSLContext:
    """For connections to a relay; reads this machine's authorities when there is no fingerprint: tens of ms."""
    if fingerprint is None:
        return ssl.create_default_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The fingerprint says more than any authority, and the handshake proves the key (RFC 8446, section 4.4.3).
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def is_pinned(certificate: bytes | None, fingerprint: bytes | None) -> bool:
    """Whether this (DER) is the relay's certificate; without a fingerprint the handshake has decided that."""
    return fingerprint is None or hmac.compare_digest(sha256(certificate or b"").digest(), fingerprint)


def another_relay() -> AuthenticationError:
    """What to say when it is not."""
    return AuthenticationError(
        "the relay's certificate is not the one its URL names: somebody else answers there, or its "
        "operator has made a new one; ask them for the URL that the relay prints at its start"
    )


def untrusted(relay: str, error: ssl.SSLCertVerificationError) -> AuthenticationError:
    """What to say when no authority vouches for it."""
    return AuthenticationError(
        f"the certificate of {relay} is by no authority this machine trusts ({error.verify_message}); give the "
        "relay's URL with its fingerprint, as it prints it at its start"
    )
