"""TLS of the relay: a given certificate, or one made here that devices pin by its fingerprint."""

from __future__ import annotations

import datetime as dt
import hashlib
import ssl
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from p2psync.errors import ConfigError
from p2psync.ports.http import certificate_identity
from p2psync.protocol.forwarding import ALPN
from relay.config import Server
from relay.data import write_private

FORWARD_ALPN: Final = ALPN
_NAME = "p2psync relay"
# RFC 5280, section 4.1.2.5: the date of a certificate that does not expire. Devices know it by its fingerprint alone.
_FOREVER = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
_EPOCH = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class Certificate:
    """The files of a certificate chain and its key, and whether devices must know it by its fingerprint."""

    chain: Path
    key: Path
    pinned: bool

    def fingerprint(self) -> bytes:
        """SHA-256 of the certificate itself (the first of the chain, DER). ConfigError when there is none."""
        return hashlib.sha256(self._read().public_bytes(serialization.Encoding.DER)).digest()

    def identities(self, url: str) -> list[str]:
        """By what devices may know the relay (`RelayAddress.identity`): the certificate itself, the hosts that it
        names, and the host of the relay's `url`, where that is set.

        A wildcard is no name: under it may be other relays. ConfigError when nothing but a wildcard is left to devices.
        """
        hosts = [urlsplit(url).hostname or ""] if url else []
        try:
            names = self._read().extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            hosts += [name.lower() for name in names.get_values_for_type(x509.DNSName)]
            hosts += [str(address) for address in names.get_values_for_type(x509.IPAddress)]
        except (x509.ExtensionNotFound, ValueError):
            pass
        hosts = [host for host in hosts if host and "*" not in host]
        if not hosts and not self.pinned:
            raise ConfigError(f"{self.chain} names no host, or only by a wildcard; set server.url to the relay's URL")
        return [certificate_identity(self.fingerprint()), *hosts]

    def _read(self) -> x509.Certificate:
        try:
            return x509.load_pem_x509_certificate(self.chain.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.chain}: no readable certificate: {error}") from error

    def load(self, context: ssl.SSLContext) -> None:
        """Use it for connections made from now on. ConfigError when it is unusable."""
        try:
            context.load_cert_chain(self.chain, self.key, password=_no_password)
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot use {self.chain} with {self.key}: {error}") from error


def _no_password() -> str:
    raise ValueError("the key is encrypted; give one without a password")


def find_certificate(settings: Server, directory: Path, host: str) -> Certificate:
    """The configured certificate, or the self-made one in `directory`, made for `host` when there is none yet.

    Raises:
        ConfigError: the configured files cannot be used.
        OSError: the self-made one cannot be written.
    """
    if settings.certificate:
        return Certificate(Path(settings.certificate), Path(settings.key), settings.pin_certificate)
    certificate = Certificate(directory / "certificate.pem", directory / "key.pem", pinned=True)
    if not certificate.chain.exists():
        directory.mkdir(mode=0o700, exist_ok=True)
        _make(certificate, host)
    return certificate


def make_context(certificate: Certificate, *, forwarding: bool) -> ssl.SSLContext:
    """TLS 1.3 only, as every client is younger than it; HTTP/2, HTTP/1.1 and, when `forwarding`, its own protocol.

    Raises:
        ConfigError: the certificate cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Sessions are resumed by tickets that outlive a request; connections are kept, so one of them is enough.
    context.num_tickets = 1
    context.set_alpn_protocols(["h2", "http/1.1", *([FORWARD_ALPN] if forwarding else [])])
    certificate.load(context)
    return context


def _make(certificate: Certificate, host: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_EPOCH)
        .not_valid_after(_FOREVER)
        .add_extension(x509.SubjectAlternativeName(_alternatives(host)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    # The key first: a certificate without one would never be made again.
    write_private(certificate.key, secret)
    write_private(certificate.chain, made.public_bytes(pem))


def _alternatives(host: str) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    try:
        names.insert(0, x509.IPAddress(ip_address(host)))
    except ValueError:
        names.insert(0, x509.DNSName(host))
    return names
