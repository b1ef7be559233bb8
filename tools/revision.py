"""Writes the next revision of the relay's schema from the tables in code; to be read and corrected by hand.

python -m tools.revision "What changes"      a new revision
python -m tools.revision                     the newest one anew, as long as nobody has applied it
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from alembic import command
from alembic.script import Script

from relay.api.routes import all_routes
from relay.db.database import IN_MEMORY, engine_from_url
from relay.db.metadata import metadata
from relay.db.migrate import alembic_config, scripts, upgrade


def write(message: str | None) -> Path:
    """The new file. `message` None: the newest revision is written again under its own name."""
    all_routes()  # importing the handlers imports every table
    if message is None:
        newest = scripts().get_revision("head")
        message = newest.doc.rstrip(".")
        Path(newest.path).unlink()
    head = scripts().get_current_head()
    engine = engine_from_url(IN_MEMORY)
    if head is not None:
        upgrade(engine)
    with engine.begin() as connection:
        config = alembic_config(connection, metadata)
        made = command.revision(config, message, autogenerate=True, rev_id=f"{int(head or 0) + 1:04}")
    engine.dispose()
    assert isinstance(made, Script)
    path = Path(made.path)
    lines = [line for line in path.read_text().splitlines(keepends=True) if "# ###" not in line]
    path.write_text("".join(lines))
    subprocess.run([Path(sys.executable).parent / "ruff", "format", "--quiet", path], check=True)  # noqa: S603
    return path


if __name__ == "__main__":
    sys.stdout.write(f"{write(sys.argv[1] if len(sys.argv) > 1 else None)}\n")
