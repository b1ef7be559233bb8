"""The home directory of a node: where everything of its own lives, and the lock that lets only one node run on it.

HOME/config.toml    settings, written by people            HOME/lock          held while a node or command writes here
HOME/state.json     devices and folders, written by us     HOME/control.json  how commands reach the running node
HOME/keys/          identity keys, 0600                    HOME/folders/ID/   the database of each folder
HOME/account.json   the account at a relay, 0600           HOME/account/      the chain of its devices
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Literal, Self

import msgspec
import platformdirs

from p2psync.crypto.identity import DeviceCard
from p2psync.errors import AuthenticationError, IntegrityError, StateError
from p2psync.model.ids import format_device_id
from p2psync.node.files import replace_file, sync_directory

if TYPE_CHECKING:
    from p2psync.node.account_store import AccountFiles, StoredAccount

STATE_VERSION = 1
MAX_STATE_BYTES = 16 << 20
_HEX_ESCAPE = re.compile(r"%([0-9A-F]{2})")


class DeviceEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device that this one accepts connections from."""

    id: str
    """Device ID in its text form."""
    name: str = ""
    """What the person here calls it; empty until given or learnt."""
    addresses: tuple[str, ...] = ()
    """Where a person said it is, as HOST:PORT."""
    added_at: int = 0
    """Seconds since the Unix epoch."""
    last_addresses: tuple[str, ...] = ()
    """Where it was last reached, newest first."""
    agreement_key: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")] = ""
    """As programs left it that did not keep the card."""
    card: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{322})?$")] = ""
    """Its card in hexadecimal, once it has been met: keys can be sealed to it while it is away, and the next handshake
    is shorter for it."""

    def known_card(self) -> DeviceCard | None:
        """The card, if it is there and this device's own."""
        with suppress(AuthenticationError):
            card = DeviceCard.decode(bytes.fromhex(self.card))
            card.verify()
            return card if format_device_id(card.device_id) == self.id else None
        return None


class FolderEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A folder that is synchronised here."""

    id: str
    """Folder ID in its text form."""
    label: str
    path: str
    """Absolute path of its directory, as `os.fsdecode` gives it."""
    paused: bool = False
    added_at: int = 0
    """Seconds since the Unix epoch."""
    mailbox: Literal["always", "offline", "never"] = "never"
    """When what is here is left at the account's relay for members who are away."""


class HomeState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The devices and folders of this node: the whole of state.json."""

    version: int = STATE_VERSION
    devices: tuple[DeviceEntry, ...] = ()
    folders: tuple[FolderEntry, ...] = ()


class _Versioned(msgspec.Struct):
    """What every version of state.json has."""

    version: int


@dataclass(frozen=True, slots=True)
class Home:
    """One home directory and the places in it."""

    path: Path

    @property
    def config_file(self) -> Path:
        """Settings, written by people."""
        return self.path / "config.toml"

    @property
    def state_file(self) -> Path:
        """Devices and folders."""
        return self.path / "state.json"

    @property
    def state_backup(self) -> Path:
        """The state before the last change."""
        return self.path / "state.json.bak"

    @property
    def control_file(self) -> Path:
        """Address and token of the running node's control API."""
        return self.path / "control.json"

    @property
    def lock_file(self) -> Path:
        """Locked while a node or a writing command uses this home; holds its process ID."""
        return self.path / "lock"

    @property
    def keys(self) -> Path:
        """Directory of the private keys."""
        return self.path / "keys"

    @property
    def folders(self) -> Path:
        """Directory of the folders' own data."""
        return self.path / "folders"

    def index(self, folder_id: str) -> Path:
        """Directory of one folder's database; `folder_id` in its text form."""
        return self.folders / folder_id / "index"

    def forget_folder(self, folder_id: str) -> None:
        """Remove one folder's own data; its files are elsewhere and stay."""
        shutil.rmtree(self.folders / folder_id, ignore_errors=True)

    @property
    def initialised(self) -> bool:
        """True once `p2psync init` has made a device here."""
        return self.state_file.exists()

    def create(self) -> None:
        """Make the directory (0700) and its parts; one that is ours already stays as it is.

        Raises:
            StateError: it is a directory of something else, or cannot be made.
        """
        try:
            if self.path.is_dir() and not self._is_ours():
                raise StateError(f"{self.path} is not empty and no p2psync home; give an empty directory with --home")
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for part in (self.keys, self.folders):
                part.mkdir(mode=0o700, exist_ok=True)
            sync_directory(self.path)
        except OSError as error:
            raise StateError(
                f"cannot make the home {self.path}: {error.strerror}; choose another with --home"
            ) from error

    def _is_ours(self) -> bool:
        names = {entry.name for entry in self.path.iterdir()}
        return not names or not names.isdisjoint({"state.json", "config.toml", "keys", "lock"})

    def lock(self) -> HomeLock:
        """Take the home for this process until the lock is released (or the process ends).

        Raises:
            StateError: another process has it, or there is no such home.
        """
        return HomeLock(self)

    def load_state(self) -> HomeState:
        """Read the devices and folders.

        Raises:
            StateError: no device was made here yet, or a newer p2psync wrote the file.
            IntegrityError: the file is damaged; the text says how to go on.
        """
        try:
            with self.state_file.open("rb") as file:
                raw = file.read(MAX_STATE_BYTES + 1)
        except FileNotFoundError:
            raise StateError(f"there is no device in {self.path} yet; run: p2psync init") from None
        except OSError as error:
            raise StateError(f"cannot read {self.state_file}: {error.strerror}; check its permissions") from error
        try:
            if len(raw) > MAX_STATE_BYTES:
                raise ValueError(f"larger than {MAX_STATE_BYTES} bytes")
            version = msgspec.json.decode(raw, type=_Versioned).version
            if version != STATE_VERSION:
                raise StateError(
                    f"{self.state_file} has format {version}, this p2psync knows {STATE_VERSION}; "
                    "use the version of p2psync that wrote it"
                )
            state = msgspec.json.decode(raw, type=HomeState)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise IntegrityError(f"{self.state_file} is damaged ({error}); {self._way_back()}") from error
        return _with_paths(state, _unescape)

    def save_state(self, state: HomeState) -> None:
        """Replace the devices and folders in one durable step; the state before stays as state.json.bak.

        Raises:
            OSError: the home cannot be written; the old state is untouched.
        """
        stored = _with_paths(state, _escape)
        content = msgspec.json.format(msgspec.json.encode(stored), indent=2) + b"\n"
        if self.state_file.exists():
            replace_file(self.state_backup, self.state_file.read_bytes())
        replace_file(self.state_file, content)

    def load_account(self) -> tuple[StoredAccount, list[bytes]] | None:
        """See `AccountStore`."""
        return self._account().load()

    def save_account(self, account: StoredAccount | None, links: list[bytes] | None = None) -> None:
        """See `AccountStore`."""
        self._account().save(account, links)

    def _account(self) -> AccountFiles:
        # Commands that ask a running node need neither the account nor all the cryptography behind it.
        from p2psync.node.account_store import AccountFiles

        return AccountFiles(self.path)

    def _way_back(self) -> str:
        if self.state_backup.exists():
            return f"{self.state_backup} is the state before the last change: look at it, then copy it over"
        return "put it back from a backup; the keys and folders themselves are not affected"


class HomeLock:
    """An exclusive advisory lock on a home, held from construction until `release`."""

    def __init__(self, home: Home) -> None:
        """Take the lock at once, or raise StateError."""
        try:
            self._descriptor = os.open(home.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StateError(
                f"cannot open {home.lock_file}: {error.strerror}; is {home.path} a p2psync home?"
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            if not isinstance(error, BlockingIOError):
                raise StateError(
                    f"cannot lock {home.lock_file}: {error.strerror}; use a file system with locks"
                ) from error
            raise StateError(
                f"another node (pid {holder if holder.isdigit() else 'unknown'}) runs on this home; "
                f"stop it, or give this one its own with --home ({home.path})"
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others have the home; the lock file stays, as removing it would let two hold it."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _with_paths(state: HomeState, convert: Callable[[str], str]) -> HomeState:
    folders = tuple(msgspec.structs.replace(folder, path=convert(folder.path)) for folder in state.folders)
    return msgspec.structs.replace(state, folders=folders)


def _escape(path: str) -> str:
    """JSON holds no bytes that are not UTF-8: those become %XX, and so does the percent sign itself."""
    return "".join(
        f"%{ord(char) & 0xFF:02X}" if char == "%" or 0xDC80 <= ord(char) <= 0xDCFF else char for char in path
    )


def _unescape(text: str) -> str:
    def byte(match: re.Match[str]) -> str:
        value = int(match[1], 16)
        return chr(value if value < 0x80 else 0xDC00 + value)

    return _HEX_ESCAPE.sub(byte, text)


def resolve_home(argument: str | Path | None = None, environ: Mapping[str, str] = os.environ) -> Home:
    """The home to use: the `--home` argument, else $P2PSYNC_HOME, else the platform's data directory for users."""
    chosen = argument or environ.get("P2PSYNC_HOME") or platformdirs.user_data_path("p2psync", appauthor=False)
    return Home(Path(chosen).expanduser().resolve())
