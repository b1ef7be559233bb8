"""What Tab offers after a command: names this device knows, read from its home without asking the node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from p2psync.cli.session import settings

if TYPE_CHECKING:
    from p2psync.node.home import HomeState


def folders(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Labels of folders, with their paths."""
    return [(entry.label, entry.path) for entry in _state(context).folders if entry.label.startswith(incomplete)]


def devices(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Names of devices (or IDs of nameless ones), with their IDs."""
    named = [(entry.name or entry.id, entry.id) for entry in _state(context).devices]
    return [(name, id_) for name, id_ in named if name.startswith(incomplete)]


def setting_names(incomplete: str) -> list[str]:
    """Names of settings."""
    from p2psync.node.config import SETTINGS

    return [name for name in SETTINGS if name.startswith(incomplete)]


def _state(context: typer.Context) -> HomeState:
    from p2psync.errors import P2PSyncError
    from p2psync.node.home import HomeState

    try:
        return settings(context).home.load_state()
    except (P2PSyncError, OSError):
        return HomeState()
