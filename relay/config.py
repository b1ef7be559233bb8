"""The operator's one TOML file: every setting with its meaning, checked strictly."""

from __future__ import annotations

import msgspec


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every setting; each section of the file is one field."""
