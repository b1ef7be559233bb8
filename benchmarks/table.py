"""The rows of the table: what is done, and what is asked of this project beside its peers and the floor."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.scale import MIB, Scale

KIB = 1024
MB, KB = 10**6, 10**3


@dataclass(frozen=True, slots=True)
class Limit:
    """One figure of this project and what bounds it: a number, or a number times what a peer (or a row) needed."""

    figure: str
    """wall, p95, wire, peak, load or rate; see `report.Line`."""
    most: float
    tool: str = ""
    """The peer whose figure is multiplied."""
    row: str = ""
    """The row whose figure of this project is multiplied."""
    text: str = ""
    """In words; made from the numbers where it is empty."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row. `title` may name fields of `Sizes`."""

    key: str
    title: str
    asked: tuple[Limit, ...] = ()


def _wall(most: float, tool: str = "", **more: str) -> Limit:
    return Limit("wall", most, tool, **more)


def _faster(times: float, tool: str) -> Limit:
    return Limit("wall", 1 / times, tool, text=f"≥ {times:g} × {tool}'s speed")


ROWS = (
    Row("big", "first sync, one file of {big}", (_wall(1.25, "floor"), _wall(0.6, "Syncthing"))),
    Row("edit", "4 KiB overwritten inside it", (_wall(0.5, "Syncthing"), Limit("wire", 0.2 * MB))),
    Row("rename-file", "it is renamed", (_wall(0.5), Limit("wire", 0.02 * MB))),
    Row("insert", "1 KiB inserted at the start of {insert}", (_wall(0.2, "Syncthing"), Limit("wire", 0.2 * MB))),
    Row("small", "first sync, {small} files of 10 KiB", (_wall(2, "floor"), _wall(0.25, "Syncthing"))),
    Row("new", "a new file of 1 KiB appears", (_wall(0.1, text="p50 ≤ 100 ms"), Limit("p95", 0.25))),
    Row("rename-directory", "the directory of {small} files renamed", (_wall(1.5), Limit("wire", MB))),
    Row("tree", "first sync, a tree like one of sources, {tree} files", (_wall(2.5, "floor"),)),
    Row("wan-big", "WAN: first sync, one file of {wan}", (_wall(1.05, "Syncthing"),)),
    Row("wan-small", "WAN: first sync, {wan_files} files of 10 KiB", (_wall(2.4),)),
    Row("loss-big", "WAN with loss: one file of {lossy}", (_faster(3, "Syncthing"),)),
    Row("loss-small", "WAN with loss: {wan_files} files of 10 KiB", (_faster(3, "Syncthing"),)),
    Row("many", "{many} files of 1 KiB: first scan and sync", (_wall(8),)),
    Row("many-idle", "{many} files: idle for {idle} s", (Limit("load", 0.003), Limit("peak", 150 * MIB))),
    Row("many-rescan", "{many} files: rescan", (_wall(1),)),
    Row("many-restart", "{many} files: restart to “in sync”", (_wall(3),)),
    Row("entries", "{entries} files of 0–1 KiB: first index", (_wall(60), Limit("peak", 600 * MIB))),
    Row("entries-sync", "{entries} files: first sync of what is indexed"),
    Row("reconnect", "{entries} files: reconnect, no change", (Limit("wire", KB),)),
    Row("reconnect-changes", "{entries} files: reconnect, {changes} changes", (Limit("wire", 0.5 * MB),)),
    Row("reconnect-lost", "{entries} files: reconnect, one database lost", (Limit("wire", 64 * MB),)),
    Row("one-sender", "{shared} from one sender at 200 Mbit/s"),
    Row("two-senders", "{shared} from two such senders", (
        _wall(1 / 1.8, row="one-sender", text="≥ 1.8 × one sender's speed"),
    )),
    Row("mailbox", "first sync of {mailbox} through the relay's mailbox, the devices online one after the other", (
        Limit("slowness", 1 / (150 * MB), text="≥ 150 MB/s for both ways together"),
    )),
)  # fmt: skip
BY_KEY = {row.key: row for row in ROWS}


def title(key: str, scale: Scale) -> str:
    """A row's title with the sizes of a run."""
    return BY_KEY[key].title.format(
        big=_size(scale.big_bytes),
        insert=_size(scale.insert_bytes),
        small=f"{scale.small_files:,}",
        tree=f"{scale.tree_files:,}",
        wan=_size(scale.wan_bytes),
        lossy=_size(scale.lossy_bytes),
        wan_files=f"{scale.wan_files:,}",
        many=f"{scale.many_files:,}",
        idle=scale.idle_s,
        entries=f"{scale.entries:,}",
        changes=f"{scale.changes:,}",
        shared=_size(scale.shared_bytes),
        mailbox=_size(scale.mailbox_mib * MIB),
    )


def _size(size: int) -> str:
    for unit, name in ((1024 * MIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:g} {name}"
    return f"{size} bytes"
