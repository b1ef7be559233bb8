"""The programs that are compared, each as ends on the hosts of a network that keep (or make) their folders the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.network import Network
from benchmarks.tools.base import Tool
from benchmarks.tools.floor import Floor
from benchmarks.tools.once import Rsync, Unison
from benchmarks.tools.p2psync import P2PSync
from benchmarks.tools.syncthing import Syncthing

Make = Callable[[Path, Network], Tool]
"""A tool whose ends live on the hosts of a network and keep everything below a directory."""

TOOLS: dict[str, Make] = {tool.name: tool for tool in (P2PSync, Syncthing, Unison, Rsync, Floor)}
