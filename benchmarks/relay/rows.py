"""What was found, beside the bare server and beside the aim."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of the relay and of the bare server."""

    what: str
    unit: str
    relay: float
    bare: float
    least_ratio: float | None = None
    """Aim: of the relay's figure to the bare one."""
    least: float | None = None
    """Aim: the figure itself is that much or more."""
    most: float | None = None
    """Aim: it is that much or less."""

    @property
    def ratio(self) -> float | None:
        """The relay's figure over the bare one; None where that is nothing."""
        return self.relay / self.bare if self.bare else None

    @property
    def aim(self) -> str:
        """The aim as text; empty when the figure only explains another one."""
        parts = [
            (self.least_ratio, f"≥ {self.least_ratio} of bare"),
            (self.least, f"≥ {self.least:g}" if self.least is not None else ""),
            (self.most, f"≤ {self.most:g}" if self.most is not None else ""),
        ]
        return ", ".join(text for bound, text in parts if bound is not None)

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None without one."""
        if not self.aim:
            return None
        return (
            (self.least_ratio is None or (self.ratio or 0) >= self.least_ratio)
            and (self.least is None or self.relay >= self.least)
            and (self.most is None or self.relay <= self.most)
        )

    def as_json(self) -> dict[str, object]:
        """All fields, and what follows from them."""
        return {**asdict(self), "ratio": self.ratio, "aim": self.aim, "met": self.met}


def show(rows: Iterable[Row], console: Console) -> None:
    """A table for people."""
    table = Table()
    table.add_column("figure")
    for name in ("relay", "bare", "relay/bare", "aim", "met"):
        table.add_column(name, justify="right")
    for row in rows:
        ratio = "–" if row.ratio is None else f"{row.ratio:.2f}"
        met = {None: "", True: "yes", False: "NO"}[row.met]
        table.add_row(f"{row.what}, {row.unit}", _text(row.relay), _text(row.bare), ratio, row.aim, met)
    console.print(table)


def _text(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:,.0f}"
