"""By what devices may know a relay: its certificate, and the hosts that this or the operator names."""

from __future__ import annotations

import datetime as dt
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from p2psync.errors import ConfigError
from p2psync.ports import RelayAddress
from p2psync.protocol.relay_address import parse_relay_address
from relay.config import Server
from relay.tls import Certificate, find_certificate


def issued(directory: Path, *hosts: str) -> Certificate:
    """A certificate as an authority would issue it for these hosts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "anything")])
    start = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + dt.timedelta(days=90))
    if hosts:
        alternatives: list[x509.GeneralName] = [
            x509.IPAddress(ip_address(host)) if host[0].isdigit() else x509.DNSName(host) for host in hosts
        ]
        made = made.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    chain = directory / "chain.pem"
    chain.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return find_certificate(Server(certificate=str(chain), key=str(directory / "key.pem")), directory, "ignored")


def test_every_address_of_a_pinned_relay_is_known_by_its_certificate(tmp_path: Path) -> None:
    certificate = find_certificate(Server(), tmp_path, "192.0.2.1")
    for host in ("192.0.2.1", "localhost", "mapped.example", "2001:db8::1"):
        address = RelayAddress(host, 8443, certificate.fingerprint())
        assert address.identity in certificate.identities("")
    assert RelayAddress("mapped.example", 8443).identity not in certificate.identities("")
    assert RelayAddress("192.0.2.1", 8443, bytes(32)).identity not in certificate.identities("")


def test_every_host_that_the_certificate_names_is_the_relay(tmp_path: Path) -> None:
    known = issued(tmp_path, "Relay.example", "alt.example", "192.0.2.1").identities("")
    for url in ("https://relay.example/", "https://RELAY.example:8443/", "https://alt.example", "https://192.0.2.1"):
        assert parse_relay_address(url).identity in known
    assert parse_relay_address("https://evil.example/").identity not in known


@pytest.mark.parametrize("hosts", [("*.example",), ()])
def test_under_a_wildcard_only_the_host_that_the_operator_names_counts(tmp_path: Path, hosts: tuple[str, ...]) -> None:
    certificate = issued(tmp_path, *hosts)
    with pytest.raises(ConfigError, match=r"server\.url"):
        certificate.identities("")
    known = certificate.identities("https://Relay.example:22443")
    assert parse_relay_address("https://relay.example:22443/").identity in known
    assert not {"evil.example", "*.example"} & set(known)
