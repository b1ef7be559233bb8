"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

DEFAULT_DATA: Final = Path("/var/lib/p2psync-relay")

DataOption = Annotated[
    Path, typer.Option("--data", metavar="DIR", envvar="P2PSYNC_RELAY_DATA", help="Where the relay keeps its data.")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", envvar="P2PSYNC_RELAY_CONFIG", help="The TOML configuration.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
