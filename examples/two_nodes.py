"""Two nodes in one program keep a folder identical: `python examples/two_nodes.py [DIRECTORY]`.

On two machines each would run in a program of its own and find the other by mDNS; everything else is the same.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import trio

import p2psync


async def main(base: Path) -> None:
    desk_home, laptop_home = base / "desk.home", base / "laptop.home"
    desk_id = p2psync.init(desk_home, "desk").id
    laptop_id = p2psync.init(laptop_home, "laptop").id
    here, there = base / "desk", base / "laptop"
    here.mkdir()
    (here / "hello.txt").write_text("Hello from the desk")

    async with (
        p2psync.Node(desk_home, listen=["127.0.0.1:0"], discovery=False) as desk,
        p2psync.Node(laptop_home, listen=["127.0.0.1:0"], discovery=False) as laptop,
    ):
        # Each side trusts the other by its full ID.
        await desk.operations.device_add(laptop_id, "laptop", laptop.addresses)
        await laptop.operations.device_add(desk_id, "desk", desk.addresses)

        folder = await desk.operations.folder_add(bytes(here), "docs")
        async with laptop.operations.events(after=0) as events:
            await desk.operations.folder_share(folder.id, laptop_id, "editor")
            async for event in events:
                if event.kind == "folder.offered":
                    break
        await laptop.operations.folder_accept(folder.id, bytes(there))

        (there / "reply.txt").write_text("Hello from the laptop")
        result = await desk.operations.wait(timeout_s=30)
        print("identical:", result.identical, "at Merkle root", result.folders[0].root)
        for path in sorted(here.glob("*.txt")):
            print(f"{path.name}: {path.read_text()}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        trio.run(main, Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as directory:
            trio.run(main, Path(directory))
