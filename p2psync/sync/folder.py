"""One shared folder on this device: supervises its parts, watches over its root, and says how it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Literal

import structlog
import trio

from p2psync.crypto.identity import DeviceKeys
from p2psync.errors import P2PSyncError, StateError, StoreFailedError, cause
from p2psync.index.index import Index
from p2psync.index.seal import DamagedRowError
from p2psync.index.values import Totals
from p2psync.index.writer import Writer
from p2psync.membership.fold import Membership, make_link
from p2psync.membership.links import Action, Role, decode_link
from p2psync.membership.pool import LinkPool
from p2psync.model.ids import DeviceId, FolderId
from p2psync.model.ignore import IgnoreMatcher
from p2psync.ports import Watch, World
from p2psync.protocol import messages as m
from p2psync.protocol.bulk import Absent, Item
from p2psync.protocol.limits import MAX_HEADS, MAX_LINKS_PER_MESSAGE
from p2psync.sync import founding, life, rights
from p2psync.sync.applier import Applier
from p2psync.sync.contents import ContentJobs
from p2psync.sync.context import BRAKES, Emit, FolderContext, SyncSettings
from p2psync.sync.exchange import Exchange
from p2psync.sync.ignores import Ignores
from p2psync.sync.link import Link
from p2psync.sync.mailbox.room import MailRoom
from p2psync.sync.members_file import MembersFile
from p2psync.sync.observer import Observer
from p2psync.sync.recovery import recover
from p2psync.sync.retention import Retention
from p2psync.sync.scrub import Scrubber
from p2psync.sync.serving import Server
from p2psync.workspace import marker

ROOT_CHECK_INTERVAL = 5.0
RESTART_DELAY = 10.0
RESTARTS = "check the disk, the space and the number of open files it may have; the folder starts again by itself"
REPAIR = "run: p2psync check --repair"
REOPENS = "check the disk; the index is opened again by itself as soon as that is possible"

_log = structlog.get_logger(__name__)


class Folder:
    """A folder that this device takes part in, paused or not."""

    def __init__(
        self,
        world: World,
        keys: DeviceKeys,
        index: Index,
        membership: Membership,
        *,
        label: str,
        path: bytes,
        settings: SyncSettings,
        emit: Emit,
        paused: bool,
        members_changed: Callable[[], None],
        others: Callable[[], Iterable[FolderContext]],
    ) -> None:
        """`members_changed` is called when other devices must be looked at anew; `others` are this device's folders."""
        self.context = FolderContext(
            world, keys, membership.folder, label, path, index, membership, settings, IgnoreMatcher(), emit
        )
        self.paused = paused
        self.exchanges: dict[DeviceId, Exchange] = {}
        self._members_changed = members_changed
        self._pool = LinkPool()
        self._scopes: dict[DeviceId, trio.CancelScope] = {}
        self._running: trio.CancelScope | None = None
        self._wake = trio.Event()
        self._fatal = ""
        self._index_failed = False
        self._reported: Exception | None = None
        self._ignores = Ignores(self.context)
        self._members_file = MembersFile(self.context)
        self.observer = Observer(self.context)
        self.contents = ContentJobs(self.context, others)
        self.applier = Applier(self.context, self.observer, self.contents)
        self.scrubber = Scrubber(self.context, self.observer, self.contents, self._idle, self.exchanges)
        self.mailroom = MailRoom(
            self.context, self.contents, self.exchanges, absorb_links=self.absorb_links, possesses=self._possesses
        )
        self._server = Server(self.context, self.observer, self.contents)
        self.context.ignores_changed = self._ignores.load
        self.watch: Literal["live", "degraded", "off"] = "off"

    @property
    def id(self) -> FolderId:
        """The folder's ID."""
        return self.context.folder

    @property
    def label(self) -> str:
        """What people call it here."""
        return self.context.label

    @property
    def role(self) -> Role | None:
        """This device's role; None once it has been removed."""
        return self.context.membership.role(self.context.device)

    # ── state ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def totals(self) -> Totals:
        """Counts over the whole folder."""
        with self.context.index.read() as reader:
            return reader.totals()

    @property
    def state(self) -> m.FolderState:
        """What the folder is doing."""
        problems = self.context.problems
        if self.paused or any(code in problems for code in BRAKES):
            return m.FolderState.PAUSED
        if self.role is None:
            return m.FolderState.ERROR
        if self._fatal or self._running is None:
            return m.FolderState.ERROR if self._fatal else m.FolderState.SCANNING
        if self.context.progress.scanning:
            return m.FolderState.SCANNING
        totals = self.totals()
        if totals.need_files or totals.need_deletes or not self.applier.idle:
            return m.FolderState.SYNCING
        return m.FolderState.IDLE if self.observer.generation else m.FolderState.SCANNING

    def _idle(self) -> bool:
        """Whether nothing waits to be seen, fetched or applied."""
        return self.observer.idle and self.applier.idle and not self.context.progress.scanning

    def announcement(self, peer: DeviceId) -> m.FolderAnnounce:
        """Where this device stands, for a peer."""
        context = self.context
        with context.index.read() as reader:
            totals, known = reader.totals(), reader.cursor(peer)
            return m.FolderAnnounce(
                context.folder,
                context.membership.label,
                list(context.membership.heads[:MAX_HEADS]),
                context.membership.link_count,
                reader.index_id,
                reader.sequence(),
                reader.root(),
                *((known.index_id, known.sequence) if known is not None else (b"", 0)),
                totals.need_files + totals.need_deletes + totals.held,
                totals.need_bytes,
                self.state,
                self.observer.generation,
                self.paused,
            )

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def run(self) -> None:
        """Keep the folder going until cancelled: through pauses, missing mounts and errors."""
        while True:
            self._wake = trio.Event()
            wait = ROOT_CHECK_INTERVAL
            if self.paused:
                wait = float("inf")
            else:
                try:
                    await self._run_once()
                except* DamagedRowError as group:
                    self._stop_with("index", str(cause(group)), "nothing: it is being repaired")
                    wait = 0.0 if await self._mended() else RESTART_DELAY
                except* P2PSyncError as group:
                    self._index_failed |= group.subgroup(StoreFailedError) is not None
                    self._stop_with("index", str(cause(group)), REOPENS if self._index_failed else REPAIR)
                    wait = RESTART_DELAY
                except* OSError as group:
                    self._stop_with("disk", f"the disk does not do what is asked of it: {cause(group)}", RESTARTS)
                    wait = RESTART_DELAY
                except* Exception as group:  # noqa: BLE001  (one folder's bug must not end the node)
                    _log.exception("a folder stopped", folder=self.context.name, exc_info=group)
                    self._stop_with("internal", f"internal error: {cause(group)!r}", "see the log; it restarts")
                    wait = RESTART_DELAY
            with trio.move_on_after(wait):
                await self._wake.wait()

    async def _mended(self) -> bool:
        """As `Scrubber.mend_again`; False as well when the index cannot be mended now."""
        try:
            return await self.scrubber.mend_again()
        except (OSError, P2PSyncError):
            return False

    async def _run_once(self) -> None:
        """Run until the root is no longer to be trusted, or the folder is paused."""
        context, world = self.context, self.context.world
        if self._index_failed:
            await world.offload.run(context.index.reopen)
            # A commit that was said to have failed may be there all the same.
            context.membership = await world.offload.run(lambda: founding.load_membership(context.index))
            self._index_failed = False
            self._members_changed()
        self._reported = None
        check = await world.offload.run(self._open_root)
        if not check.ok:
            self._stop_with("root", check.text, check.remedy)
            return
        self._fatal = ""
        self._tell_role()
        for code in ("root", "index", "disk", "internal"):
            context.clear_problem(code)
        with ExitStack() as stack:
            stack.callback(self._closed)
            stack.callback(context.close_root)
            self._running = stack.enter_context(trio.CancelScope())
            await world.offload.run(lambda: recover(context))
            await world.offload.run(self._ignores.load)
            await world.offload.run(lambda: rights.ensure(context))
            together = await world.offload.run(lambda: life.renew(context))
            await world.offload.run(self._members_file.keep)
            self.observer.start(derive_removals=together)
            watch = await world.offload.run(self._start_watch)
            if watch is not None:
                stack.callback(watch.close)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.observer.run)
                nursery.start_soon(self.contents.run)
                nursery.start_soon(self.applier.run)
                nursery.start_soon(Retention(context).run)
                nursery.start_soon(self.scrubber.run)
                nursery.start_soon(self._guard_root)
                sorting = False
                while True:
                    if self.mailroom.is_needed and not sorting:
                        nursery.start_soon(self.mailroom.run)
                        sorting = True
                    self.watch = "off" if watch is None else "live" if watch.live else "degraded"
                    if self._reported is not None:
                        raise self._reported
                    await trio.sleep(ROOT_CHECK_INTERVAL)

    def _open_root(self) -> marker.RootCheck:
        context = self.context
        try:
            root = context.world.storage.open_root(context.path)
        except OSError as error:
            return marker.unreachable(error)
        place = founding.load_place(context.index)
        check = marker.check(root, place.marker(context.folder), founding.root_identity(place, root))
        if check.ok:
            context.set_root(root)
        else:
            root.close()
        return check

    def _start_watch(self) -> Watch | None:
        context = self.context
        if context.world.watcher is None:
            return None
        try:
            return context.world.watcher.watch(context.path, self.observer.inbox.put)
        except OSError as error:
            _log.warning("cannot watch; relying on scans", folder=context.name, error=str(error))
            return None

    async def _guard_root(self) -> None:
        """Stop everything as soon as the root is not the folder any more (I19)."""
        context = self.context
        while True:
            await trio.sleep(ROOT_CHECK_INTERVAL)
            check = await context.world.offload.run(context.check_root)
            if not check.ok:
                self._stop_with("root", check.text, check.remedy)
                assert self._running is not None
                self._running.cancel()
            elif self._members_file.is_due:
                await context.world.offload.run(self._members_file.keep)

    def _stop_with(self, code: str, text: str, remedy: str) -> None:
        self._fatal = code
        self.context.raise_problem(code, text, remedy)

    def _closed(self) -> None:
        self._running = None
        self.watch = "off"
        self.context.state_changed.fire()

    # ── control ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def pause(self) -> None:
        """Neither scan nor exchange until `resume`."""
        self.paused = True
        self._interrupt()

    def resume(self, *, confirm: bool) -> None:
        """Go on; with `confirm` a held mass change goes through once."""
        context = self.context
        for code in BRAKES:
            if not confirm:
                context.clear_problem(code)
        context.confirmed_outgoing = context.confirmed_incoming = confirm
        self.paused = False
        self._wake.set()
        self.observer.ask_scan()
        self.applier.retry()
        self._members_changed()
        context.state_changed.fire()

    async def adopt(self) -> None:
        """Take the directory that now stands at the folder's path for the folder, if it carries its marker.

        It may be a backup, older than the records: what it lacks is no deletion and what it has is no news, so all of
        it is compared with the records as if it had never been seen.
        """
        context = self.context

        def forget(writer: Writer) -> None:
            # Events of a new incarnation supersede none of the old: an older file becomes a conflict, no rollback.
            writer.new_incarnation(max(writer.incarnation + 1, context.world.clock.wall_ns() // 10**9))
            for entry in list(writer.entries()):
                writer.drop_synced(entry.path)

        def work() -> None:
            root = context.world.storage.open_root(context.path)
            try:
                found = marker.read(root)
                if found is None or found.folder != context.folder:
                    raise StateError(
                        "the directory has no marker of this folder; remove the folder and accept it again at this path"
                    )
                place = founding.Place(found.marker_id, found.created_ns, root.identity().ino)
                if place.ino != founding.load_place(context.index).ino:
                    context.index.write(forget)
                founding.store_place(context.index, place)
            finally:
                root.close()

        self._interrupt()
        async with context.commit_lock:
            await context.world.offload.run(work)
        self._wake.set()

    def _interrupt(self) -> None:
        if self._running is not None:
            self._running.cancel()
        for scope in self._scopes.values():
            scope.cancel()
        self._wake.set()
        self.context.state_changed.fire()

    def close(self) -> None:
        """Close the index; nothing of this folder may run any more."""
        self.context.index.close()

    # ── membership ──────────────────────────────────────────────────────────────────────────────────────────────────
    async def act(self, action: Action) -> None:
        """Sign a membership change and tell the members. PermissionDenied when this device may not."""
        context = self.context
        encoded = make_link(context.keys, context.membership, action)
        await self.absorb_links(await self.mailroom.keys.with_epoch(encoded))

    async def absorb_links(self, links: Sequence[bytes]) -> None:
        """Take in membership links from anywhere, in any order; what no longer may stand leaves the index."""
        context = self.context

        def work() -> Membership:
            before = context.membership
            grown = self._pool.add(before, links)
            fresh = [decode_link(encoded) for encoded in grown.links_after(before.heads)]

            def commit(writer: Writer) -> None:
                for link in fresh:
                    writer.add_link(link.hash, link.encoded)
                rights.take_effect(writer, grown, context.device, fresh)

            if fresh:
                context.index.write(commit)
            return grown

        async with context.commit_lock:
            before, context.membership = context.membership, await context.world.offload.run(work)
        if context.membership.heads == before.heads:
            return
        if context.has_root:
            await context.world.offload.run(self._members_file.keep)
        for device, scope in list(self._scopes.items()):
            if context.membership.role(device) is None:
                scope.cancel()
        if self.role is None:
            for scope in list(self._scopes.values()):
                scope.cancel()
        self._tell_role()
        self.observer.ask_scan()
        context.records_changed.fire()
        context.state_changed.fire()
        self._members_changed()

    def _tell_role(self) -> None:
        if self.role is not None:
            self.context.clear_problem("removed")
            return
        self.context.raise_problem(
            "removed",
            "this device was removed from the folder; nothing more is exchanged, its files stay where they are",
            f"p2psync folder remove {self.label}",
        )

    def cut(self, device: bytes) -> list[tuple[bytes, int]]:
        """What this device has seen of another's changes: what still counts once it has lost the right. Blocks."""
        with self.context.index.read() as reader:
            return rights.cut(reader, device)

    # ── peers ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def wants(self, device: DeviceId) -> bool:
        """Whether an exchange with this device should be running."""
        membership = self.context.membership
        return (
            not self.paused
            and not self._index_failed
            and membership.role(device) is not None
            and self.role is not None
            and device not in self.exchanges
        )

    async def exchange(self, link: Link, heard: dict[FolderId, m.FolderAnnounce | m.FolderResume], first: bool) -> None:
        """Exchange with a connected member, from what was `heard` on. ConnectionLost and ProtocolError come through.

        Does nothing while another exchange with that device runs: tasks that both found it wanted may start together.
        """
        if not self.wants(link.device):
            return
        exchange = Exchange(
            self.context,
            link,
            announce=self.announcement,
            rescan=self.rescan,
            absorb_links=self.absorb_links,
            possesses=self._possesses,
            keys=self.mailroom.keys,
            tell_heads=self.mailroom.tell_heads,
            hear_heads=self.mailroom.hear_heads,
            heard=heard.pop(self.id, None),
            first=first,
        )
        device = link.device
        self.exchanges[device] = exchange
        self.contents.attach(link)
        self.applier.retry()
        try:
            with trio.CancelScope() as self._scopes[device]:
                await exchange.run()
            if self.context.membership.role(device) is None:
                await exchange.part()
        except* DamagedRowError:
            await self.scrubber.mend_again()
            raise
        except* StoreFailedError as group:
            self._reported = cause(group)
            raise
        finally:
            self.contents.detach(link)
            del self._scopes[device]
            del self.exchanges[device]
            self.context.state_changed.fire()

    async def wait_quiet(self) -> None:
        """Wait until no exchange runs any more."""
        while self.exchanges:
            await self.context.state_changed.wait_beyond(self.context.state_changed.count)

    def offer(self, device: DeviceId) -> m.FolderOffer | None:
        """What tells a member that may not know the folder about it."""
        membership = self.context.membership
        role = membership.role(device)
        if role is None:
            return None
        links = membership.encoded_links()
        return m.FolderOffer(self.id, membership.label, role, len(links), links[:MAX_LINKS_PER_MESSAGE])

    async def rescan(self) -> int:
        """Scan now; the generation of that scan, or 0, at once, when the folder cannot be scanned."""
        if self.paused or self._fatal:
            return 0
        asked = self.observer.ask_scan()
        await self.observer.wait_scanned(asked)
        return asked

    async def serve(self, device: bytes, request: m.ContentRequest) -> list[Item]:
        """Answer a request for content."""
        try:
            return await self._server.serve(device, request)
        except (DamagedRowError, StoreFailedError) as error:
            self._reported = error
        except (OSError, P2PSyncError):
            pass
        return [Absent.LATER] * len(request.lengths)

    def _possesses(self, device: bytes, roots: Sequence[bytes]) -> None:
        self.contents.possesses(device, roots)
        self.applier.retry()
