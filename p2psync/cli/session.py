"""Where a command does its work: on the running node through its control API, else on the home itself."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from p2psync.node.home import Home
    from p2psync.node.operations import Operations

T = TypeVar("T")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


class Settings:
    """The options that stand before the command; the context's `obj`."""

    def __init__(self, home: Path | None, verbose: bool) -> None:
        self._home = home
        self.verbose = verbose

    @property
    def home(self) -> Home:
        """--home, else $P2PSYNC_HOME, else the platform's data directory."""
        from p2psync.node.home import resolve_home

        return resolve_home(self._home)


def settings(context: typer.Context) -> Settings:
    """The global options of this call."""
    # While completing a word no callback has run: the parsed options are all there is.
    return context.find_object(Settings) or Settings(context.find_root().params.get("home"), verbose=False)


def perform(context: typer.Context, work: Callable[[Operations], Awaitable[T]], *, needs_node: bool = False) -> T:
    """Run `work` on the device's operations and return its result.

    Raises:
        StateError: there is no device in the home, or `needs_node` and no node runs.
        P2PSyncError: what the operation raises.
    """
    import trio

    return trio.run(_perform, settings(context).home, work, needs_node)


async def _perform(home: Home, work: Callable[[Operations], Awaitable[T]], needs_node: bool) -> T:
    from p2psync.errors import StateError
    from p2psync.node.control_client import connect

    if not home.initialised:
        raise StateError(f"there is no device in {home.path} yet; run: p2psync init")
    operations = await connect(home.path)
    if operations is not None:
        return await work(operations)
    if needs_node:
        raise StateError("no node runs on this home; start it with: p2psync run")
    from p2psync.node import open_offline

    async with open_offline(home.path) as offline:
        return await work(offline)


def absolute(path: str) -> bytes:
    """A path as typed → absolute bytes, its directory free of symlinks; the entry itself is not followed."""
    raw = os.path.abspath(os.fsencode(path))
    directory, name = os.path.split(raw)
    return os.path.join(os.path.realpath(directory), name)


def resolved(path: str) -> bytes:
    """The path of a directory as typed → absolute bytes free of symlinks, so that one folder has one path."""
    return os.path.realpath(os.fsencode(path))
