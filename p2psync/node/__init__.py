"""The daemon: configuration, supervision, connections, control API and status, composed from the other rooms.

Importing this package loads nothing else: a command that only talks to a running node must not pay for the engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2psync.node.node import Node, init, open_offline, run

__all__ = ["Node", "init", "open_offline", "run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from p2psync.node import node

        return getattr(node, name)
    raise AttributeError(name)
