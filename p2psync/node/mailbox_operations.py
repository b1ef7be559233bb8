"""Operations on the mailboxes of folders at the account's relay."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from p2psync.crypto.identity import DeviceCard
from p2psync.errors import InputError, P2PSyncError
from p2psync.membership.sigchain import AccountChain
from p2psync.model.ids import DeviceId, format_folder_id, short_id
from p2psync.node.account_operations import RECOVERY_NAME
from p2psync.node.device_operations import DeviceOperations
from p2psync.node.home import FolderEntry
from p2psync.node.relay_folder import RelayFolder, RelayNews, relay_name
from p2psync.node.views import AccountView, MailboxPolicy, MailboxView, PlanChange, RecoveryKey
from p2psync.sync.folder import Folder
from p2psync.sync.mailbox.backlog import Policy


class MailboxOperations(DeviceOperations):
    """See `Operations`."""

    _news: RelayNews | None = None
    _listening = False

    async def folder_mailbox(self, folder: str, policy: MailboxPolicy | None = None) -> MailboxView:
        """How a folder uses the account's relay, or from now on shall use it."""
        chosen = self.find_folder(folder)
        if policy is not None and policy not in {known.value for known in Policy}:
            raise InputError(f"a mailbox is used always, offline or never, not {policy!r}")
        if policy is not None:
            if policy != "never":
                self.account.active()
            await self._save_policy(chosen, policy)
            self.hurry.fire()
            if self.online:
                self.use_mailboxes()
                if policy == "never" and self.account.stored is not None:
                    await chosen.mailroom.forget(relay_name(self.account.stored.account_id))
        return self.mailbox_view(chosen)

    async def account_status(self) -> AccountView:
        """As it stands; where the relay answers, folders that had given up on it for a while try again."""
        view = await super().account_status()
        if view.usage is not None:
            self._try_mailboxes_again()
        return view

    async def account_subscribe(self, plan: str = "") -> PlanChange:
        """Subscribe; what had no room tries again."""
        change = await super().account_subscribe(plan)
        self._try_mailboxes_again()
        return change

    # ── the account's devices as members ────────────────────────────────────────────────────────────────────────────
    async def account_take_in(self, card: DeviceCard) -> None:
        """Add a paired device to the account, and at once to its folders."""
        await super().account_take_in(card)
        self.hurry.fire()

    async def account_remove_device(self, device: str) -> None:
        """Put a device out of the account, and at once out of the folders."""
        await super().account_remove_device(device)
        self.hurry.fire()

    async def account_recovery(self) -> RecoveryKey:
        """A new recovery key, which owns the folders from now on."""
        renewed = await super().account_recovery()
        self.hurry.fire()
        return renewed

    def card_of(self, device: bytes) -> DeviceCard | None:
        """The card of a device that has been met or is in the account."""
        entry = self._chain.devices.get(DeviceId(device)) if self._chain is not None else None
        return entry.card if entry is not None else super().card_of(device)

    def device_name(self, device: bytes) -> str:
        """What a person here calls a device; a recovery key is called that."""
        return RECOVERY_NAME if device in self.on_paper() else super().device_name(device)

    def on_paper(self) -> Collection[DeviceId]:
        """The account's recovery keys, also those that have been replaced."""
        return self._chain.paper if self._chain is not None else ()

    @property
    def _chain(self) -> AccountChain | None:
        return self._account.chain if self._account is not None else None

    # ── mailboxes ───────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def news(self) -> RelayNews:
        """What the relay tells; it is listened to once there is something to hear."""
        if self._news is None:
            self._news = RelayNews(lambda: self.account.client, self.account_changed, self._try_mailboxes_again)
        return self._news

    def listen(self) -> None:
        """Hear the relay's news from now on."""
        if not self._listening and self.connections is not None:
            self._listening = True
            self.connections.start_soon(self.news.run)

    def _try_mailboxes_again(self) -> None:
        """The relay answers, or there may be more room there than there was."""
        for folder in self.synchronizer.folders.values():
            folder.mailroom.try_again()

    async def _save_policy(self, folder: Folder, policy: MailboxPolicy) -> None:
        text = folder.context.name

        def change(known: list[FolderEntry]) -> list[FolderEntry]:
            return [msgspec.structs.replace(f, mailbox=policy) if f.id == text else f for f in known]

        await self.save(folders=change)

    def use_mailboxes(self) -> None:
        """Let every folder use its mailbox as it is set; on a running node, and after the account has changed."""
        policies = {entry.id: Policy(entry.mailbox) for entry in self.state.folders}
        if all(policy is Policy.NEVER for policy in policies.values()) and not self._listening:
            return
        stored = self.account.stored
        self.listen()
        for folder in self.synchronizer.folders.values():
            policy = policies.get(format_folder_id(folder.id), Policy.NEVER)
            services = []
            if stored is not None and self._listening and policy is not Policy.NEVER:
                news = self.news.of(folder.id)
                services.append(RelayFolder(lambda: self.account.client, stored.account_id, folder.id, news))
            folder.mailroom.use(services, policy)

    def mailbox_view(self, folder: Folder) -> MailboxView:
        """How a folder uses its mailbox, as far as it is known now."""
        entry = self.find_folder_entry(folder.context.name)
        status = next(iter(folder.mailroom.status), None)
        # A mailbox that was just left may not have ended yet.
        if status is None or entry.mailbox == Policy.NEVER.value:
            return MailboxView(entry.label, entry.mailbox)
        return MailboxView(
            entry.label,
            entry.mailbox,
            status.relay,
            status.activity.value,
            status.waiting,
            status.sent,
            status.received,
            status.confirmed,
            [self._member_name(folder, device) for device in folder.mailroom.keys.keyless()],
            status.waiting_bytes,
            status.read_age_s,
        )

    def _member_name(self, folder: Folder, device: DeviceId) -> str:
        known = self.device_name(device)
        return known if known != short_id(device) else folder.context.membership.members[device].name or known

    def resume_mailboxes(self) -> None:
        """At a start: an account that cannot be read must not keep folders waiting."""
        try:
            self.use_mailboxes()
        except (OSError, P2PSyncError) as error:
            self.event_log.publish("account.problem", str(error))
