"""What the mailbox needs of other rooms, as they provide it: modules and services fit these shapes."""

from __future__ import annotations

from typing import Protocol

from sqlalchemy import Connection


class Ledger(Protocol):
    """The account of bytes that somebody pays for (`relay.accounts.ledger`)."""

    def charge(self, c: Connection, account_id: bytes, size: int, now: int) -> None:
        """Count bytes. ApiError 507 `over-quota` when the account's plan has no room for them."""
        ...

    def refund(self, c: Connection, account_id: bytes, size: int, now: int) -> None:
        """Bytes that are stored no longer."""
        ...


class FolderLimits(Protocol):
    """How many folders an account may own (`relay.accounts.plans.Plans`)."""

    def check_folder(self, c: Connection, account_id: bytes, owned: int) -> None:
        """ApiError 403 `plan-limit` unless an account that owns so many folders may own one more."""
        ...


class Chunks(Protocol):
    """The block service's part of a folder."""

    def drop_ref(self, c: Connection, folder_id: bytes, ref_id: bytes, now: int) -> None:
        """A reference is needed no longer; that it does not exist is no error."""
        ...

    def drop_folder(self, c: Connection, folder_id: bytes, now: int) -> None:
        """Nothing of a folder is needed any longer."""
        ...
