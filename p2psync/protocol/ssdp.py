"""SSDP (UPnP Device Architecture 1.1, section 1): asking whether the router speaks UPnP, and where it describes itself.

Anybody on the local network can answer. Of what is answered only a URL at the router's own address is believed, so
that nobody makes this device ask for anything elsewhere.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address
from typing import Final

from p2psync.errors import InputError

GROUP: Final = "239.255.255.250"
PORT: Final = 1900
WAIT_S: Final = 1
"""Those who answer spread their answers over this time."""
MAX_ANSWER: Final = 2048
MAX_URL: Final = 256
GATEWAY: Final = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
"""What is looked for; later versions answer to it, too."""
_LOCATION: Final = re.compile(rb"\r\n[Ll][Oo][Cc][Aa][Tt][Ii][Oo][Nn][ \t]*:[ \t]*([!-~]+)[ \t]*\r\n")


def search(host: str = GROUP) -> bytes:
    """The question, to everybody or to one host."""
    lines = ("M-SEARCH * HTTP/1.1", f"HOST: {host}:{PORT}", 'MAN: "ssdp:discover"', f"MX: {WAIT_S}", f"ST: {GATEWAY}")
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def read_location(data: bytes, router: IPv4Address) -> str:
    """Where a router describes itself. InputError unless `data` answers the question with a URL at its own address."""
    if not data.startswith(b"HTTP/1.1 200 ") or len(data) > MAX_ANSWER:
        raise InputError("no answer to a search")
    found = _LOCATION.search(data)
    if found is None:
        raise InputError("an answer that names no description")
    url = found[1].decode("ascii")
    if len(url) > MAX_URL or not re.fullmatch(rf"http://{re.escape(str(router))}(:[0-9]{{1,5}})?/[!-~]*", url):
        raise InputError("the description is not at the router's own address")
    return url
