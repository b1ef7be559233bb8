"""The check of one folder: what is stored against what must be, and its repair as far as anyone reachable can help."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import trio

from p2psync.index.tables import HISTORY
from p2psync.index.verify import Finding as IndexFinding
from p2psync.model.entries import Synced
from p2psync.model.paths import RelPath, display
from p2psync.node.views import Finding, FolderCheck, ScrubView, path_fields
from p2psync.sync import mending, rot, stored
from p2psync.sync.context import FolderContext
from p2psync.sync.folder import Folder
from p2psync.sync.lost import UNAVAILABLE
from p2psync.sync.scrub import DENIALS

PAGE = 256
POLL = 0.25
ASK_AGAIN = 2.0
"""Seconds after which everybody is asked once more for what nobody had."""
STUCK = 60.0
"""Seconds without any news after which what is still damaged counts as not to be had.

Damage that was met may have ended a connection, and a device that is busy may need long to say anything.
"""
ALONE = 10.0
"""The same while nobody has been connected since the check began."""
FRUITLESS = 600.0
"""Seconds of news without any progress after which it ends as well."""
REPAIR = "run: p2psync check --repair"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a check is to do; see `Operations.check`."""

    repair: bool
    quick: bool
    accept_local: bool


class _Lull:
    """How long something has been as it is."""

    def __init__(self) -> None:
        self._last: object = None
        self._since = -math.inf

    def seconds(self, latest: object, now: float) -> float:
        """Seconds since it became `latest`."""
        if latest != self._last:
            self._last, self._since = latest, now
        return now - self._since


class Check:
    """One check of one folder. `tell(files, bytes, total_bytes)` hears how far it is, at most once a page."""

    def __init__(self, folder: Folder, wanted: Wanted, *, online: bool, tell: Callable[[int, int, int], None]) -> None:
        self._folder = folder
        self._context: FolderContext = folder.context
        self._wanted = wanted
        self._online = online
        self._tell = tell
        self._offload = folder.context.world.offload
        self._lost = False
        """Whether something was dropped that only other devices can give back."""
        self.findings: list[Finding] = []
        self._files = self._bytes = self._versions = 0

    async def run(self) -> FolderCheck:
        """Check, and repair when that is wanted; `findings` then says what was found and what came of it."""
        index = await self._check_index()
        with self._open() as available:
            rotten: list[tuple[RelPath, str]] = []
            kept: list[stored.Kept] = []
            if not available:
                self._report("root", "the directory is not available; its files were not checked", "mount it")
            elif not self._wanted.quick:
                rotten = await self._check_files()
                kept = await self._offload.run(lambda: list(stored.history(self._context)))
                await self._check_staged()
            if self._wanted.repair and self._online and (rotten or index):
                await self._wait_for_peers(scan=bool(index))
            await self._conclude_index(index)
            await self._conclude_files(rotten)
            await self._conclude_lost()
            await self._conclude_kept(kept)
        standing = await self._offload.run(partial(scrub_view, self._context))
        return FolderCheck(self._folder.label, self._files, self._bytes, self._versions, standing)

    # ── the index ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def _check_index(self) -> list[IndexFinding]:
        context = self._context
        async with context.commit_lock:
            checked = await self._offload.run(lambda: mending.check(context))
            if checked.findings and self._wanted.repair and not self._online:
                dropped = await self._offload.run(lambda: mending.mend(context, checked.distrusted))
        if checked.findings and self._wanted.repair and self._online:
            dropped = await self._folder.scrubber.mend(checked.distrusted)
        if checked.findings and self._wanted.repair:
            self._lost = any(finding.code in mending.FETCHED for finding in dropped)
        return checked.findings

    async def _conclude_index(self, found: Sequence[IndexFinding]) -> None:
        """Say what became of each fault of the index."""
        if not self._wanted.repair:
            for finding in found:
                self._report(finding.code, finding.text, REPAIR, finding.path)
            return
        context = self._context
        if found and self._online:
            await self._folder.scrubber.announce_anew()
        async with context.commit_lock:
            left = (await self._offload.run(lambda: mending.check(context))).findings if found else []
        for finding in [*found, *(f for f in left if f not in found)]:
            repaired = finding not in left
            self._report(finding.code, finding.text, self._where_peers(), finding.path, repaired=repaired)
        if self._lost and not (self._online and self._folder.scrubber.agreed()):
            self._report("records", "damaged records were dropped; other members have them", self._where_peers())

    # ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _check_files(self) -> list[tuple[RelPath, str]]:
        """Hash every file that looks untouched; those that are damaged, and what is to be said about each."""
        context = self._context
        with context.index.read(passing_over={}) as reader:
            total = reader.totals().bytes
            known = [(RelPath(p.path), p.text) for p in rot.damaged(reader)]
        damaged = dict(known)
        after = b""
        while page := await self._offload.run(partial(self._page, after)):
            after = page[-1][0]
            found = await self._offload.run(lambda page=page: self._read([entry for _, entry in page]))  # type: ignore[misc]
            for entry, _ in found:
                damaged[entry.path] = "it has changed on the disk without anyone writing to it"
            if found and self._wanted.repair:
                await self._folder.scrubber.note(found)
            self._tell(self._files, self._bytes, total)
        with context.index.read(passing_over={}) as reader:
            damaged |= {RelPath(p.path): p.text for p in rot.damaged(reader) if p.path not in damaged}
        return sorted(damaged.items())

    def _page(self, after: bytes) -> list[tuple[bytes, Synced]]:
        with self._context.index.read(passing_over={}) as reader:
            return reader.synced_after(after, PAGE)

    def _read(self, entries: Sequence[Synced]) -> list[tuple[Synced, bytes]]:
        found = []
        for entry in entries:
            if entry.content:
                self._files += 1
                self._bytes += entry.size
            try:
                content = rot.find(self._context, entry)
            except FileNotFoundError:
                continue
            except OSError as error:
                text = f"cannot be read: {error.strerror or error}"
                self._report("io-error", text, "check the disk (dmesg, SMART) and save what still reads", entry.path)
                continue
            if content is not None:
                found.append((entry, content))
        return found

    async def _conclude_files(self, rotten: Sequence[tuple[RelPath, str]]) -> None:
        """Say what became of each damaged file; what nobody can give back is published if a person says so."""
        context = self._context
        if not rotten:
            return

        def left() -> set[bytes]:
            with context.index.read(passing_over={}) as reader:
                return {problem.path for problem in rot.damaged(reader)}

        open_ = await self._offload.run(left) if self._wanted.repair else {path for path, _ in rotten}
        if self._wanted.repair and self._wanted.accept_local:
            accepted = await self._folder.scrubber.accept([path for path, _ in rotten if path in open_])
            open_ -= set(accepted)
        for path, text in rotten:
            remedy = self._where_peers() if self._wanted.repair else f"{REPAIR}, with a device that has it connected"
            self._report("rot", text, remedy, path, repaired=path not in open_)

    async def _conclude_lost(self) -> None:
        """Files whose content nobody can have any more; they are given up if a person says so."""
        folder, wanted = self._folder, self._wanted
        if not self._online or folder.paused:
            return
        lost = await folder.scrubber.lost.hopeless()
        accepted = await folder.scrubber.lost.give_up(lost) if wanted.repair and wanted.accept_local else []
        for item in lost:
            text = "its content is nowhere: no connected device has it"
            self._report(UNAVAILABLE, text, self._where_peers(), item.path, repaired=item.path in accepted)

    # ── what is stored beside ───────────────────────────────────────────────────────────────────────────────────────
    async def _conclude_kept(self, damaged: Sequence[stored.Kept]) -> None:
        """Put kept versions right, from files that are healthy by now."""
        context, repair = self._context, self._wanted.repair
        with context.index.read(passing_over={}) as reader:
            self._versions = reader.txn.count(HISTORY)
        for kept in damaged:
            repaired = repair and await self._offload.run(partial(stored.heal, context, kept))
            if repair and not repaired and self._wanted.accept_local and kept.content:
                await self._offload.run(partial(stored.accept, context, kept))
                repaired = True
            what = kept.error or ("is damaged" if kept.content else "is missing")
            remedy = "no file has its content any more; to keep what is left: p2psync check --repair --accept-local"
            text = f"a kept version {what}: {display(kept.entry.stored)}"
            self._report("history", text, remedy if repair else REPAIR, RelPath(kept.entry.path), repaired=repaired)

    async def _check_staged(self) -> None:
        """Content on its way in, while nothing is fetched."""
        context, repair = self._context, self._wanted.repair
        if not self._folder.applier.idle:
            return
        async with context.commit_lock:
            for part in await self._offload.run(partial(stored.staged, context)):
                if repair:
                    await self._offload.run(partial(context.root.unlink, part.path))
                text = f"{part.wrong} damaged chunks of content on its way in; they are fetched again"
                self._report("staged", text, REPAIR, RelPath(part.path), repaired=repair)

    # ── helpers ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _wait_for_peers(self, *, scan: bool) -> None:
        """Until everything is healed, or nobody who is connected can help any further.

        With `scan` the files were looked at as well since the index was mended. The verdict is made of answers, not of
        time: who is still mending an index, scanning or taking in records does not know yet what it has, and a request
        that failed says nothing. Time counts only when there is no news at all.
        """
        folder, context = self._folder, self._context
        folder.observer.ask_scan()
        generation = math.inf if scan else 0
        before: dict[bytes, int] = {}
        met = asked_all = False
        gains, news = _Lull(), _Lull()
        asked = -math.inf
        while True:
            now = trio.current_time()
            open_ = await self._offload.run(self._left)
            agreed = not self._lost or folder.scrubber.agreed()
            if agreed and generation == math.inf and not context.awaiting_records:
                generation = folder.observer.ask_scan()
            # What is put off to a later look is not known yet either.
            known = agreed and folder.observer.generation >= generation and (folder.observer.idle or not scan)
            denied = all(
                folder.contents.denials.times(content) >= before.get(content, 0) + DENIALS for content in open_
            )
            if known and (not open_ or (denied and asked_all and folder.scrubber.lost.agreed())):
                return
            if known and denied and folder.scrubber.lost.agreed():
                # Some may have said so before they knew.
                asked_all = await folder.scrubber.lost.all_looked_again()
                before = {content: folder.contents.denials.times(content) for content in open_}
                asked = -math.inf
            met |= bool(folder.exchanges)
            gained = (len(open_), context.progress.received, known, asked_all)
            told = [(device, exchange.theirs.announce) for device, exchange in folder.exchanges.items()]
            if gains.seconds(gained, now) > FRUITLESS or news.seconds((gained, told), now) > (STUCK if met else ALONE):
                return
            if now - asked > ASK_AGAIN:
                folder.applier.retry()
                asked = now
            await trio.sleep(POLL)

    def _left(self) -> list[bytes]:
        """The contents that are wanted in the place of damaged ones."""
        with self._context.index.read(passing_over={}) as reader:
            found = [reader.synced(RelPath(problem.path)) for problem in rot.damaged(reader)]
        return [b"" if entry is None else entry.content for entry in found]

    def _where_peers(self) -> str:
        if not self._online:
            return "start the node (p2psync run): it is fetched from a device that has it"
        return "connect a device that has it; to keep what is here: p2psync check --repair --accept-local"

    @contextmanager
    def _open(self) -> Iterator[bool]:
        """Whether the folder's tree is there; opened for the occasion when no node runs."""
        context = self._context
        if context.has_root:
            yield True
            return
        try:
            root = context.world.storage.open_root(context.path)
        except OSError:
            yield False
            return
        context.set_root(root)
        try:
            yield True
        finally:
            if context.has_root and context.root is root:
                context.close_root()
            else:
                # The folder was resumed meanwhile and has opened its own.
                root.close()

    def _report(self, code: str, text: str, remedy: str, path: bytes = b"", *, repaired: bool = False) -> None:
        shown, raw = path_fields(path) if path else (None, None)
        finding = Finding(self._folder.label, text, remedy, shown, repaired, code=code)
        if raw:
            finding = Finding(self._folder.label, text, remedy, shown, repaired, raw, code)
        self.findings.append(finding)


def scrub_view(context: FolderContext) -> ScrubView:
    """How far scrubbing a folder is."""
    with context.index.read(passing_over={}) as reader:
        now, left = rot.standing(reader), len(rot.damaged(reader))
    return ScrubView(
        now.began_ns / 1e9 or None,
        now.finished_ns / 1e9 or None,
        now.files,
        now.size,
        now.found,
        max(0, now.found - left),
    )
