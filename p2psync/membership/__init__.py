"""Who belongs to a folder and what they may do: a DAG of signed links, folded alike on every device.

Pure: signed bytes in, decisions out. `links` is the format, `graph` decides which links count, `fold` is the state
everyone derives from them, `pool` holds links that came too early, `batches` checks record signatures against it.
"""

from p2psync.membership.batches import open_batch, sign_batch
from p2psync.membership.fold import Member, Membership, create_folder, fold, make_link
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
    "decode_link",
    "fold",
    "make_link",
    "open_batch",
    "sign_batch",
]
