"""A version that lost on this disk does not come back from nowhere."""

from __future__ import annotations

from msgspec.structs import replace

from p2psync.model.entries import Fingerprint, Synced
from p2psync.model.paths import RelPath
from p2psync.model.records import FileRecord, decode_record, merge, target_content, winner
from p2psync.model.versions import Dot, Replica, VersionVector
from p2psync.ports import Kind
from p2psync.reconcile.observe import finish
from p2psync.reconcile.resolve import resolution

A, B, C = (Replica(bytes([n]) * 12) for n in (1, 2, 3))
PATH = RelPath(b"notes")
NOTHING = VersionVector()


def held(_: bytes) -> bool:
    return True


def record(kind: Kind, dot: Dot, base: VersionVector = NOTHING, *, deleted: bool = False) -> FileRecord:
    content = b"" if kind is Kind.DIRECTORY else b"c" * 32
    return FileRecord(PATH, kind, deleted, 0, 0, 0o755, content, b"", b"", dot, base.advance(dot))


FILE = record(Kind.FILE, Dot(1, A))
DIRECTORY = record(Kind.DIRECTORY, Dot(1, C))
GONE = record(Kind.DIRECTORY, Dot(2, B), DIRECTORY.version, deleted=True)
SETTLED = Synced(
    PATH, Kind.DIRECTORY, 0, 0, 0o755, b"", b"", b"", Fingerprint(1, 1, 0, 0, 0, 1),
    FILE.version.join(DIRECTORY.version), (DIRECTORY.dot,),
)  # fmt: skip


def test_what_was_settled_here_follows_what_the_others_did_since() -> None:
    siblings = merge([FILE], [GONE])
    assert winner(siblings) == FILE
    draft = resolution(SETTLED, siblings, held)
    assert draft is not None
    assert draft.deleted
    assert all(sibling.deleted for sibling in merge(siblings, [finish(draft, Dot(3, A))]))


def test_what_others_wrote_since_stays_theirs() -> None:
    """Published anew under our name, it would outlive the deletion that its author is about to make."""
    theirs = record(Kind.FILE, Dot(1, C))
    mine = record(Kind.FILE, Dot(2, A))
    settled = replace(SETTLED, version=mine.version, implied=True)
    siblings = merge([mine], [theirs])
    draft = resolution(settled, siblings, held)
    assert draft is not None
    assert draft.deleted
    after = merge(siblings, [finish(draft, Dot(3, A))])
    assert winner(after) == theirs
    gone = record(Kind.FILE, Dot(2, C), theirs.version, deleted=True)
    assert winner(merge(after, [gone])).deleted


def test_a_loser_whose_copy_was_deleted_is_deleted_when_its_name_is_free_again() -> None:
    implied = replace(SETTLED, implied=True)
    draft = resolution(implied, [FILE], lambda _: False)
    assert draft is not None
    assert draft.deleted
    assert resolution(implied, [FILE], held) is None


def test_the_tombstone_of_a_symlink_is_one_that_others_accept() -> None:
    lost = replace(record(Kind.SYMLINK, Dot(1, A)), target=b"there", content=target_content(b"there"))
    draft = resolution(SETTLED, merge([lost], [GONE]), held)
    assert draft is not None
    assert decode_record(finish(draft, Dot(3, A)).encode()).deleted


def test_a_winner_that_never_lost_here_is_simply_shown() -> None:
    unseen = replace(SETTLED, version=DIRECTORY.version)
    assert resolution(unseen, merge([FILE], [GONE]), held) is None
    assert resolution(None, [FILE], held) is None
    assert resolution(SETTLED, [GONE], held) is None
    assert resolution(SETTLED, [DIRECTORY, FILE], held) is None
    assert resolution(SETTLED, [FILE], held) is None


def test_a_local_change_of_a_viewer_and_rot_are_not_conflicts() -> None:
    siblings = merge([FILE], [GONE])
    assert resolution(replace(SETTLED, diverged=True), siblings, held) is None
    assert resolution(replace(SETTLED, kind=Kind.FILE, content=b""), siblings, held) is None
