"""The relay's command line; this version has no relay and says so."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

import p2psync


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit."""
    parser = argparse.ArgumentParser(
        prog="p2psync-relay", description="Helps p2psync devices that cannot reach each other directly."
    )
    parser.add_argument("--version", action="version", version=f"p2psync-relay {p2psync.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the relay (not part of this version)")
    serve.add_argument("--data", metavar="DIR")
    serve.add_argument("--listen", metavar="HOST:PORT")
    serve.add_argument("--config", metavar="FILE")
    parser.parse_args(arguments)
    sys.exit(
        f"error: the relay is not part of p2psync {p2psync.__version__}; devices of this version connect directly: "
        "on one network, or with `p2psync device add ID --address HOST:PORT`"
    )
