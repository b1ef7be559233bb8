"""Puts the block service together from the configuration and the ports."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, Counter

from p2psync.crypto.seal import MAX_SEALED_CHUNK
from p2psync.errors import ConfigError
from relay.blocks.local import LocalStore
from relay.blocks.maintenance import Maintenance
from relay.blocks.s3 import SCHEME, open_bucket
from relay.blocks.service import Blocks, Settings, World
from relay.config import Storage
from relay.ports import BlockStore


def make_store(settings: Storage, directory: Path) -> BlockStore:
    """The store that the configuration names, else the directory. ConfigError; OSError when it cannot be made."""
    if settings.url.startswith(SCHEME):
        return open_bucket(settings)
    if settings.url:
        raise ConfigError('storage.url: write "s3://BUCKET" or "s3://BUCKET/PREFIX"')
    return LocalStore(directory, min_free=settings.min_free)


def build_blocks(settings: Storage, world: World, registry: CollectorRegistry) -> tuple[Blocks, Maintenance]:
    """The service, and what is to run beside it."""
    damaged = Counter("p2psync_relay_chunks_lost", "Chunks found lost or damaged.", registry=registry)
    share = max(settings.memory // 4, MAX_SEALED_CHUNK)
    blocks = Blocks(
        world,
        Settings(
            memory=max(settings.memory, MAX_SEALED_CHUNK),
            memory_per_account=share,
            wait_s=settings.keep_unreferenced_s,
            scrub_rate=settings.scrub_rate,
        ),
    )
    return blocks, Maintenance(blocks, damaged.inc)
