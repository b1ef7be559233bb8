"""The one `MetaData` every table of the relay stands on, so that constraints have the same names in every database.

Tables of folder data have `folder_id` first in their primary key, tables of account data `account_id`: both are the
keys by which the database may be cut into shards, so no statement joins across them and no foreign key crosses.
"""

from __future__ import annotations

from sqlalchemy import MetaData

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)
