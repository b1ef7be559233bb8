"""A removed member with everything a relay ever stored: what it had it keeps, what came later stays shut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.crypto.epochs import EpochKey, KeyRing
from p2psync.crypto.seal import ChunkKind, ChunkName, chunk_id, open_body, open_chunk, seal_body, seal_chunk
from p2psync.errors import AuthenticationError, PermissionDenied
from p2psync.membership import Action, Grant, Membership, Role, make_epoch, make_grant, open_grant
from p2psync.model.hashing import Algorithm, digest, labelled
from p2psync.protocol.mailbox import ChainKey, EntryKind, next_slot

from .helpers import act, add, demote, device, remove, team

EDITOR, VIEWER, VAULT = Role.EDITOR, Role.VIEWER, Role.VAULT


@dataclass
class Relay:
    """Everything a relay has stored, which here everybody can read."""

    grants: list[Grant] = field(default_factory=list)
    chunks: dict[bytes, bytes] = field(default_factory=dict)
    bodies: list[tuple[bytes, bytes]] = field(default_factory=list)
    """(context, sealed)."""


class Story:
    """A folder whose owner seals one chunk and one entry after every step, and renews the epoch when that is due."""

    def __init__(self, membership: Membership) -> None:
        self.membership = membership
        self.relay = Relay()
        self.ring = KeyRing(membership.folder)
        self.written: list[bytes] = []
        self.write()

    def write(self) -> None:
        key = self.key_to_seal_under()
        for number in range(8):
            if self.membership.may_read(device(number).device_id):
                self.relay.grants.append(make_grant(device(0), self.membership, key, device(number).card, b"e" * 32))
            else:
                with pytest.raises(PermissionDenied):
                    make_grant(device(0), self.membership, key, device(number).card, b"e" * 32)
        content = b"version %d" % len(self.written)
        self.written.append(content)
        name = ChunkName(ChunkKind.CONTENT, digest(Algorithm.BLAKE3, content))
        self.relay.chunks[chunk_id(key, name)] = bytes(seal_chunk(key, name, content))
        chain = ChainKey(device(0).card.signing_key, b"c" * 8)
        slot = next_slot(key.folder, chain, None, EntryKind.RECORDS, key.id)
        self.relay.bodies.append((slot.context, seal_body(key, slot.context, content, content.ljust(32))))

    def key_to_seal_under(self) -> EpochKey:
        if self.membership.epoch_stale:
            secret = labelled(b"secret", bytes((len(self.written),)))
            link, new = make_epoch(device(0), self.membership, self.ring, secret)
            self.membership = self.membership.extend([link])
            self.ring = self.ring.climb(self.membership.rungs, new)
        epoch = self.membership.current_epoch
        assert epoch is not None
        key = self.ring.get(epoch.key_id)
        assert key is not None
        return key

    def act(self, action: Action) -> None:
        self.membership = act(self.membership, 0, action)
        self.write()

    def keys_of(self, number: int) -> Iterator[EpochKey]:
        """Every key a device can come by, with all links and all that the relay has."""
        ring = KeyRing(self.membership.folder)
        for grant in self.relay.grants:
            try:
                ring = ring.climb(self.membership.rungs, open_grant(device(number), self.membership, grant))
            except AuthenticationError:
                continue
        return iter(ring)

    def readable(self, number: int) -> set[bytes]:
        """What a device can read of the chunks and of the bodies; both must be the same."""
        chunks, bodies = set(), set()
        for key in self.keys_of(number):
            for content in self.written:
                name = ChunkName(ChunkKind.CONTENT, digest(Algorithm.BLAKE3, content))
                for sealed in self.relay.chunks.values():
                    try:
                        chunks.add(open_chunk(key, name, sealed))
                    except AuthenticationError:
                        continue
            for context, sealed in self.relay.bodies:
                try:
                    bodies.add(open_body(key, context, sealed))
                except AuthenticationError:
                    continue
        assert chunks == bodies
        return chunks


@pytest.mark.parametrize("loss", [remove(1), remove(2), demote(1, VAULT), demote(2, VAULT)])
def test_a_removed_member_opens_nothing_that_came_later(loss: Action) -> None:
    story = Story(team(EDITOR, VIEWER))
    gone = 1 if loss in (remove(1), demote(1, VAULT)) else 2
    story.act(loss)
    story.act(add(5, VIEWER))
    assert story.readable(gone) == set(story.written[:1])
    for reader in {0, 1, 2, 5} - {gone}:
        assert story.readable(reader) == set(story.written), "who stays, and who comes, reads everything"


def test_strangers_and_vaults_open_nothing() -> None:
    story = Story(team(EDITOR, VAULT))
    assert story.readable(2) == set()
    assert story.readable(6) == set()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "remove"]), st.integers(1, 4)), max_size=6))
def test_a_device_reads_what_was_sealed_while_it_was_a_reader_and_before(steps: list[tuple[str, int]]) -> None:
    story = Story(team())
    last_read = dict.fromkeys(range(1, 5), 0)
    for what, number in steps:
        action: Action = add(number, VIEWER) if what == "add" else remove(number)
        if not story.membership.can(device(0).device_id, action):
            continue
        story.act(action)
        for reader in last_read:
            if story.membership.may_read(device(reader).device_id):
                last_read[reader] = len(story.written)
    for reader, count in last_read.items():
        assert story.readable(reader) == set(story.written[:count])
