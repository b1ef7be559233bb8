"""A node inside of another trio program: `python examples/embed.py HOME DIRECTORY`.

The program does its own work (here: it writes a note every tenth of a second) while the node shares the directory;
leaving the block stops the node in order.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

import p2psync


async def write_notes(directory: Path) -> None:
    for number in range(5):
        (directory / f"note-{number}.txt").write_text(f"note {number}")
        await trio.sleep(0.1)


async def main(home: Path, directory: Path) -> None:
    async with p2psync.Node(home, listen=["127.0.0.1:0"], discovery=False, control=False) as node:
        operations = node.operations
        if not await operations.folder_list():
            await operations.folder_add(bytes(directory))
        await write_notes(directory)
        (folder,) = await operations.folder_list()
        await operations.folder_scan(folder.id)
        status = await operations.status()
        print(f"{status.folders[0].label}: {status.folders[0].files} files, {status.folders[0].state}")


if __name__ == "__main__":
    home, directory = (Path(argument).resolve() for argument in sys.argv[1:])
    if not home.exists():
        p2psync.init(home, "embedded")
    directory.mkdir(parents=True, exist_ok=True)
    trio.run(main, home, directory)
