"""Who belongs to a folder and what they may do: a DAG of signed links, folded alike on every device.

Pure: signed bytes in, decisions out. `links` is the format, `graph` decides which links count, `fold` is the state
everyone derives from them, `pool` holds links that came too early, `batches` checks record signatures against it,
`grants` hands the keys of epochs to readers.
"""

from p2psync.membership.batches import open_batch, sign_batch
from p2psync.membership.fold import KeyEpoch, Member, Membership, create_folder, fold, make_link
from p2psync.membership.grants import Grant, decode_grant, make_epoch, make_grant, open_grant
from p2psync.membership.links import (
    Action,
    Add,
    Epoch,
    Genesis,
    Link,
    Remove,
    Rename,
    Role,
    SetRole,
    Unknown,
    decode_link,
)
from p2psync.membership.pool import LinkPool

__all__ = [
    "Action",
    "Add",
    "Epoch",
    "Genesis",
    "Grant",
    "KeyEpoch",
    "Link",
    "LinkPool",
    "Member",
    "Membership",
    "Remove",
    "Rename",
    "Role",
    "SetRole",
    "Unknown",
    "create_folder",
    "decode_grant",
    "decode_link",
    "fold",
    "make_epoch",
    "make_grant",
    "make_link",
    "open_batch",
    "open_grant",
    "sign_batch",
]
