"""Print what a running node does: `python examples/watch_events.py [HOME] [COUNT]`.

Connects to the control API of the node that `p2psync run` started on the home, as the commands do. Ends after COUNT
events, or when the node ends.
"""

from __future__ import annotations

import sys
from datetime import datetime

import trio

import p2psync
from p2psync.node.control_client import connect
from p2psync.node.home import resolve_home


async def main(home: str | None, count: int | None) -> None:
    operations = await connect(resolve_home(home).path)
    if operations is None:
        raise p2psync.P2PSyncError("no node runs on this home; start it with: p2psync run")
    labels = {folder.id: folder.label for folder in await operations.folder_list()}
    async with operations.events(after=0) as events:
        async for event in events:
            when = datetime.fromtimestamp(event.at).strftime("%H:%M:%S")
            where = labels.get(event.folder or "", "")
            print(when, event.kind, where, event.path or "", event.text, flush=True)
            if count is not None and (count := count - 1) <= 0:
                break


if __name__ == "__main__":
    arguments = [*sys.argv[1:], None, None]
    trio.run(main, arguments[0], int(arguments[1]) if arguments[1] else None)
