"""What a planted bug is, and how it gets into the sources."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Edit:
    """Replace the one place in `file` that reads `old` by `new`."""

    file: str
    old: str
    new: str

    def apply(self, tree: Path) -> None:
        """Change the file below `tree`; ValueError unless the old text stands there exactly once."""
        path = tree / self.file
        path.write_text(self.on(path.read_text()))

    def on(self, source: str) -> str:
        """The changed text of the file."""
        if source.count(self.old) != 1:
            raise ValueError(f"{self.file} has {source.count(self.old)} places that read {self.old!r}, not one")
        return source.replace(self.old, self.new)


@dataclass(frozen=True)
class Mutant:
    """A planted bug.

    `bug` says what it is and which system had it (numbers are of syncthing/syncthing unless another project is named),
    `tests` are the pytest arguments of which at least one must go red, the cheapest first.
    """

    name: str
    bug: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


def edit(file: str, old: str, new: str) -> Edit:
    """An edit of a file below `p2psync`."""
    return Edit(f"p2psync/{file}", old, new)
