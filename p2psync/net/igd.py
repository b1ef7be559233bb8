"""A process of its own for the library that speaks UPnP with the router, with little memory and little time.

miniupnpc reads what a router says without a bound on its length or duration, in C. It is told one URL, at the router's
address; where the router then wants to be asked is checked before it is. Usage, as a script without this package:

    igd.py ROUTER URL map PORT SECONDS OUTSIDE…      prints the outside address and port that lead to PORT
    igd.py ROUTER URL unmap OUTSIDE
"""

from __future__ import annotations

import resource
import sys
from typing import Final

MEMORY: Final = 128 << 20
"""Bytes of address space; Python takes a fraction of it."""
CPU_S: Final = 5


def main(router: str, url: str, action: str, *words: str) -> str:
    """What is to be printed. Exceptions, of the library too, say what went wrong; nobody reads them."""
    for what, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CPU, CPU_S), (resource.RLIMIT_FSIZE, 0)):
        resource.setrlimit(what, (most, most))
    import miniupnpc

    igd = miniupnpc.UPnP()
    control = igd.selectigd(url)
    # The library takes what stands before the first colon or slash for the host.
    if not control.startswith((f"http://{router}:", f"http://{router}/")):
        raise ValueError("the router wants something else to be asked")
    if action == "unmap":
        igd.deleteportmapping(int(words[0]), "TCP")
        return ""
    port, seconds, *outside = map(int, words)
    return f"{igd.externalipaddress()} {_add(igd, port, seconds, outside)}"


def _add(igd: object, port: int, seconds: int, outside: list[int]) -> int:
    """The first of some ports that the router gives; some routers give them without a time only."""
    for number in outside:
        for lease in (seconds, 0):
            try:
                igd.addportmapping(number, "TCP", igd.lanaddr, port, "p2psync", "", lease)  # type: ignore[attr-defined]
            except Exception:  # noqa: BLE001, S112  (the library has no errors of its own)
                continue
            return number
    raise ValueError("the router gives none of these ports")


if __name__ == "__main__":
    print(main(*sys.argv[1:]))  # noqa: T201  (a process that answers)
