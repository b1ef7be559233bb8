"""The client metadata database: what one device knows about one folder, in one transactional key-value store.

`index` is the database, `reader` and `writer` its two kinds of transaction, `tables` its layout, `values` what it hands
out, `lmdb_store` the store it runs on in production and `verify` the check behind `p2psync check`.
"""

from p2psync.index.index import Index
from p2psync.index.reader import Reader
from p2psync.index.values import (
    Cursor,
    FeedEntry,
    HistoryEntry,
    Intent,
    Location,
    Pending,
    Problem,
    StoredRecord,
    Totals,
)
from p2psync.index.writer import Writer

__all__ = [
    "Cursor",
    "FeedEntry",
    "HistoryEntry",
    "Index",
    "Intent",
    "Location",
    "Pending",
    "Problem",
    "Reader",
    "StoredRecord",
    "Totals",
    "Writer",
]
