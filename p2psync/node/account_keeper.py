"""Keeps the folders of an account and its devices together, on every device and without any of them having to meet.

What is due follows from the verified chain of the account and the links of each folder (`membership.keeping`), so all
devices agree on it and none has to remember what it has done. Folders at the relay that are not here become offers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Final, assert_never

import structlog
import trio

from p2psync.errors import InputError, P2PSyncError, cause
from p2psync.membership.keeping import Admit, Change, Expel, Promote, changes_due, turn, voucher
from p2psync.membership.links import Action, Add, Remove, Role, SetRole
from p2psync.membership.sigchain import AccountChain, DeviceKind
from p2psync.model.ids import (
    FOLDER_ID_SIZE,
    FolderId,
    format_device_id,
    format_folder_id,
    parse_device_id,
    parse_folder_id,
)
from p2psync.node.account import Account
from p2psync.node.account_operations import RECOVERY_NAME
from p2psync.node.mailbox_operations import MailboxOperations
from p2psync.node.relay_folder import RelayFolder
from p2psync.protocol.relay_api import FolderEntry
from p2psync.sync.folder import Folder
from p2psync.sync.mailbox.finding import find_folder
from p2psync.sync.pulse import Pulse

_log = structlog.get_logger(__name__)

TURN_S: Final = 20.0
"""Seconds for which a change is left to each device of the account that comes before this one."""
JITTER_S: Final = 5.0
HURRY_S: Final = 15.0
"""For so long after a person has changed the account here this device waits for no other."""
LOOK_S: Final = 300.0
"""Folders are looked at this often even when nothing is known to have changed."""
ASK_S: Final = 1800.0
"""The relay is asked this often even when no news comes."""
PAUSE_S: Final = 1.0
"""Between two looks at least: much changes that has nothing to do with members."""
ASK_PAUSE_S: Final = 5.0
MAX_BACK_OFF_S: Final = 600.0
FIND_S: Final = 600.0
"""How long a relay may take to show one folder."""
MAX_FINDS: Final = 4
"""Folders that are looked for at the same time: a relay may keep one of them waiting."""
FIND_AGAIN_S: Final = 10.0
"""When a folder to which nothing leads is tried again; doubled each time, up to `ASK_S`."""


@dataclass(slots=True)
class _Search:
    """What is known of a folder at the relay that is not here."""

    last_seq: int = -1
    tried: float = float("-inf")
    delay: float = FIND_AGAIN_S
    found: bool = False
    running: bool = False

    def wait(self, now: float, last_seq: int) -> float:
        """Seconds until it is to be looked for (again); one that was found only when it has grown since."""
        if self.found:
            return self.tried + ASK_S - now if last_seq != self.last_seq else float("inf")
        if last_seq != self.last_seq:
            self.delay, self.last_seq = FIND_AGAIN_S, last_seq
        return self.tried + self.delay - now


class AccountKeeper:
    """Runs beside a node's folders; idle where there is no account, and harmless where its relay is not to be had."""

    def __init__(self, node: MailboxOperations) -> None:
        self._node = node
        self._poke = Pulse()
        self._hurry_until = float("-inf")
        self._act_at: dict[FolderId, float] = {}
        """When this device makes what is due in a folder, if nobody else has."""
        self._account_id = b""
        self._owned: frozenset[FolderId] = frozenset()
        """Folders that the account pays for, as the relay says."""
        self._asked = self._ask_at = float("-inf")
        self._news_seen = -1
        self._chain_seen = -1
        self._connected_seen = 0
        self._failures = 0
        self._misses = 0
        """How often in a row a folder was not at the relay whose mailbox is used: it is made there soon."""
        self._there: dict[FolderId, FolderEntry] = {}
        """Folders at the relay."""
        self._listed: list[FolderEntry] = []
        """Those that are not here."""
        self._listing = Pulse()
        self._searches: dict[FolderId, _Search] = {}
        self._finds = 0

    async def run(self) -> None:
        """Look whenever something has changed, until cancelled. What a relay does never ends this."""
        node = self._node
        account = await self._account()
        async with trio.open_nursery() as nursery:
            for pulse in (node.account_changed, node.synchronizer.changed, node.news.account, node.news.connected):
                nursery.start_soon(self._poke.follow, pulse)
            nursery.start_soon(self._watch_person)
            nursery.start_soon(self._search)
            while True:
                seen = self._poke.count
                try:
                    wait = await self._look(account)
                except (OSError, P2PSyncError) as error:
                    _log.warning("the account's folders cannot be looked at", error=str(error))
                    wait = ASK_PAUSE_S
                await trio.sleep(PAUSE_S)
                with trio.move_on_after(wait):
                    await self._poke.wait_beyond(seen)

    async def _account(self) -> Account:
        """The account, once it can be read."""
        changed = self._node.account_changed
        while True:
            seen = changed.count
            try:
                return await self._node.read_account()
            except (OSError, P2PSyncError) as error:
                _log.warning("the account cannot be read", error=str(error))
            with trio.move_on_after(LOOK_S):
                await changed.wait_beyond(seen)

    async def _watch_person(self) -> None:
        hurry = self._node.hurry
        while True:
            await hurry.wait_beyond(hurry.count)
            self._hurry_until = trio.current_time() + HURRY_S
            self._poke.fire()

    # ── what the relay says ─────────────────────────────────────────────────────────────────────────────────────────
    async def _look(self, account: Account) -> float:
        """Do what is due; seconds after which to look again at the latest."""
        node, stored = self._node, account.stored
        if stored is None or stored.account_id != self._account_id:
            self._forget(b"" if stored is None else stored.account_id)
        if stored is None or stored.state in ("unverified", "logged-out"):
            return LOOK_S
        node.listen()
        wait = await self._ask(account)
        self._show()
        node.use_mailboxes()
        chain = await node.world.offload.run(account.confirmed_chain)
        if chain is None:
            return wait
        await self._introduce(account, chain)
        for folder in list(node.synchronizer.folders.values()):
            wait = min(wait, await self._keep(folder, chain))
        return wait

    async def _introduce(self, account: Account, chain: AccountChain) -> None:
        """Know the devices that have joined the account since: they need not be paired with each."""
        node, known = self._node, account.require().introduced
        if known >= len(chain.links):
            return
        here = {device.id for device in node.state.devices}
        for entry in chain.devices.values():
            is_new = entry.since >= known and format_device_id(entry.device_id) not in here
            if is_new and entry.kind is DeviceKind.DEVICE and entry.device_id != node.device_id:
                try:
                    await node.know(entry.device_id, None, ())
                except InputError as error:
                    _log.warning("a device of the account cannot be known", error=str(error))
        await account.note_introduced(len(chain.links))

    def _forget(self, account_id: bytes) -> None:
        """Another account, or none: nothing that a relay has said counts any more."""
        self._account_id = account_id
        self._owned, self._node.at_relay = frozenset(), frozenset()
        self._ask_at = self._asked = float("-inf")
        for folder in self._searches:
            self._node.synchronizer.withdraw(folder)
        self._there, self._listed, self._searches = {}, [], {}
        self._act_at.clear()
        self._listing.fire()

    async def _ask(self, account: Account) -> float:
        """Ask for the chain and the folders when that is due; seconds until it is due again."""
        node, now = self._node, trio.current_time()
        links = len(account.chain.links) if account.chain is not None else 0
        is_back = self._failures > 0 and node.news.connected.count != self._connected_seen
        if is_back or node.news.account.count != self._news_seen or links != self._chain_seen:
            self._ask_at = min(self._ask_at, self._asked + ASK_PAUSE_S)
        if now < self._ask_at:
            return self._ask_at - now
        self._asked, self._news_seen, self._chain_seen = now, node.news.account.count, links
        self._connected_seen, self._failures = node.news.connected.count, 0 if is_back else self._failures
        try:
            chain = await account.refresh()
            listed = await account.client.mailbox.folders()
        except (OSError, P2PSyncError, ExceptionGroup) as error:
            if not isinstance(cause(error), OSError | P2PSyncError):
                raise
            _log.debug("the relay does not say what belongs to the account", error=str(error))
            self._failures += 1
            back_off = min(MAX_BACK_OFF_S, ASK_PAUSE_S * 2.0 ** min(self._failures, 16))
            self._ask_at = now + back_off * node.world.rng.uniform(0.5, 1.0)
            return self._ask_at - now
        self._failures, self._chain_seen = 0, len(chain.links)
        listed = [entry for entry in listed if len(entry.folder_id) == FOLDER_ID_SIZE]
        self._owned = frozenset(FolderId(entry.folder_id) for entry in listed if entry.owned)
        self._there = {FolderId(entry.folder_id): entry for entry in listed}
        used = [entry.id for entry in node.state.folders if entry.mailbox != "never"]
        self._misses = 0 if all(parse_folder_id(folder) in self._there for folder in used) else self._misses + 1
        soon = ASK_PAUSE_S * 2.0 ** min(self._misses, 16)
        self._ask_at = now + (min(ASK_S, soon) if self._misses else ASK_S)
        return self._ask_at - now

    # ── members ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _keep(self, folder: Folder, chain: AccountChain) -> float:
        """Make what is due in one folder, once it is this device's turn; seconds until then."""
        node, now = self._node, trio.current_time()
        policy = next((e.mailbox for e in node.state.folders if e.id == folder.context.name), "never")
        admits = policy != "never" and folder.id in self._owned

        def due() -> list[Change]:
            return changes_due(folder.context.membership, chain, node.device_id, admits=admits)

        if not due():
            self._act_at.pop(folder.id, None)
            return LOOK_S
        place = turn(folder.context.membership, chain, node.device_id)
        patience = 0.0 if place == 0 else place * TURN_S + node.world.rng.uniform(0, JITTER_S)
        at = self._act_at.setdefault(folder.id, now + patience)
        if now < at and now > self._hurry_until:
            return at - now
        try:
            for change in due():
                if change in due():  # nobody else has made it meanwhile
                    await self._make(folder, change)
        except (OSError, P2PSyncError) as error:
            _log.warning("cannot change the members", folder=folder.context.name, error=str(error))
            self._act_at[folder.id] = now + MAX_BACK_OFF_S
            return MAX_BACK_OFF_S
        del self._act_at[folder.id]
        return LOOK_S

    async def _make(self, folder: Folder, change: Change) -> None:
        node, offload = self._node, self._node.world.offload
        text, label = format_device_id(change.device), folder.context.label
        is_paper = change.device in node.on_paper()
        name = RECOVERY_NAME if is_paper else next((d.name for d in node.state.devices if d.id == text), "")
        shown = node.device_name(change.device)
        action: Action
        match change:
            case Admit(device, role, card):
                action = Add(device, role, name, 0, card)
                kind, what = "folder.shared", f"{label} is shared with {shown}, which is in the account"
            case Promote(device):
                action = SetRole(device, Role.OWNER, None)
                kind, what = "folder.shared", f"{shown} owns {label}"
            case Expel(device):
                action = Remove(device, await offload.run(partial(folder.cut, device)))
                kind, what = "folder.unshared", f"{shown} is out of the account, and so removed from {label}"
            case _:
                assert_never(change)
        await folder.act(action)
        node.event_log.publish(kind, what, folder=folder.context.name, device=text)

    # ── folders that are not here ───────────────────────────────────────────────────────────────────────────────────
    def _show(self) -> None:
        """Have those folders looked for that are at the relay and not here."""
        here = {parse_folder_id(entry.id) for entry in self._node.state.folders}
        listed = [entry for folder, entry in self._there.items() if folder not in here]
        for folder in [f for f in self._searches if f in here or f not in self._there]:
            if self._searches.pop(folder).found:
                self._node.synchronizer.withdraw(folder)
        if listed != self._listed:
            self._listed = listed
            self._listing.fire()

    async def _search(self) -> None:
        """Look for the folders that are not here; one that proves that this device is a member is offered."""
        async with trio.open_nursery() as nursery:
            while True:
                seen, wait = self._listing.count, ASK_S
                for entry in self._listed:
                    search = self._searches.setdefault(FolderId(entry.folder_id), _Search())
                    left = search.wait(trio.current_time(), entry.last_seq) if not search.running else math.inf
                    if left > 0:
                        wait = min(wait, left)
                    elif self._finds < MAX_FINDS:
                        self._finds += 1
                        search.running = True
                        nursery.start_soon(self._find_one, FolderId(entry.folder_id), entry.last_seq, search)
                with trio.move_on_after(max(wait, PAUSE_S)):
                    await self._listing.wait_beyond(seen)

    async def _find_one(self, folder: FolderId, last_seq: int, search: _Search) -> None:
        await self._find(folder, last_seq, search)
        search.running = False
        self._finds -= 1
        self._listing.fire()

    async def _find(self, folder: FolderId, last_seq: int, search: _Search) -> None:
        node, account = self._node, self._node.account
        found = None
        try:
            stored, chain = account.active()
            service = RelayFolder(lambda: account.client, stored.account_id, folder, Pulse(), is_there=True)
            with trio.move_on_after(FIND_S):
                found = await find_folder(service, node.keys, folder, node.world.offload)
        except (OSError, P2PSyncError) as error:
            _log.debug("cannot look for a folder", folder=format_folder_id(folder), error=str(error))
        if self._searches.get(folder) is not search:
            return  # it is here by now, or the account is another
        search.tried, search.last_seq = trio.current_time(), last_seq
        known = [parse_device_id(device.id) for device in node.state.devices]
        by = voucher(found.membership, chain, node.device_id, known) if found is not None else None
        if found is None or by is None:
            search.delay = min(2 * search.delay, ASK_S)
            if search.found:
                node.synchronizer.withdraw(folder)
            search.found = False
            return
        search.found = True
        node.at_relay |= {folder}
        node.synchronizer.propose(found.membership, by, node.device_name(by))
