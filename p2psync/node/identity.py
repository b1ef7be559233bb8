"""This device's keys in the home: made once, read by their owner only, optionally sealed under a passphrase."""

from __future__ import annotations

import os
from collections.abc import Callable

from p2psync.crypto.identity import SEED_SIZE, DeviceKeys
from p2psync.crypto.keyfile import KEYFILE_ENTROPY, decode_keys, encode_keys, needs_passphrase
from p2psync.errors import StateError
from p2psync.node.files import read_private, write_private
from p2psync.node.home import Home
from p2psync.ports import Rng

KEY_FILE = "device.key"
PASSPHRASE_VARIABLE = "P2PSYNC_PASSPHRASE"  # noqa: S105  (the name of a variable)
"""Environment variable that holds the passphrase where nobody is there to type it."""


def create_keys(home: Home, rng: Rng, passphrase: str | None) -> DeviceKeys:
    """Make this device's keys. StateError when there are some already."""
    path = home.keys / KEY_FILE
    if path.exists():
        raise StateError(f"there is a device in {home.path} already; `p2psync device id` shows its ID")
    keys = DeviceKeys(rng.token(SEED_SIZE))
    write_private(path, encode_keys(keys, passphrase, rng.token(KEYFILE_ENTROPY)))
    return keys


def load_keys(home: Home, ask: Callable[[], str] | None = None) -> DeviceKeys:
    """Read this device's keys; sealed ones need the passphrase from the environment or from `ask`.

    Raises:
        StateError: there are none, others can read them, or no passphrase is to be had.
        InputError: the passphrase is wrong.
        IntegrityError: the file is damaged.
    """
    path = home.keys / KEY_FILE
    try:
        data = read_private(path)
    except FileNotFoundError:
        raise StateError(f"there is no device in {home.path} yet; run: p2psync init") from None
    if not needs_passphrase(data):
        return decode_keys(data)
    passphrase = os.environ.get(PASSPHRASE_VARIABLE) or (ask() if ask is not None else "")
    if not passphrase:
        raise StateError(f"the keys in {path} are under a passphrase; set {PASSPHRASE_VARIABLE}")
    return decode_keys(data, passphrase)
