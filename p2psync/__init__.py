"""p2psync: peer-to-peer, end-to-end encrypted file synchronisation.

Pure rooms (`model`, `reconcile`, `crypto`, `membership`, `protocol`, `transfer`) decide; edges (`index`, `workspace`,
`net`) act; `sync` and `node` compose them; `cli` talks to a node through its control API.

`p2psync.Node` is a node for embedding in another trio program, `p2psync.init` makes the device that it runs as.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2psync.errors import P2PSyncError
    from p2psync.node import Node, init

__version__ = "0.1.0"
__all__ = ["Node", "P2PSyncError", "__version__", "init"]


def __getattr__(name: str) -> Any:
    """The public names, loaded when they are first used: most importers need only a part of this package."""
    match name:
        case "Node" | "init":
            from p2psync import node

            return getattr(node, name)
        case "P2PSyncError":
            from p2psync.errors import P2PSyncError

            return P2PSyncError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
