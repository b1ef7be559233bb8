"""What connected members tell each other of a mailbox finds out a relay that shows one of them less."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
import trio

from p2psync.protocol import mailbox as entries
from p2psync.protocol import messages as m
from p2psync.protocol.mailbox import Header, decode_entry, next_slot
from p2psync.sync.mailbox.mailbox import JUDGE_EVERY
from tests.sync.conftest import LABEL, contents, simulated
from tests.sync.mailbox.fake import NAME
from tests.sync.mailbox.stories import Post, mailed
from tests.sync.mailbox.test_hostile import Liar
from tests.sync.mailbox.test_lives import three


class Freezing(Liar):
    """Shows nothing of what one author has left since a moment, heads and all, and everything else."""

    author = b""
    before = 0
    frozen: Sequence[bytes] = ()

    def freeze(self, author: bytes) -> None:
        self.author, self.before = author, len(self.relay.feed)
        self.frozen = [head.encoded for head in self.relay.heads.values() if head.author == author]
        self.edit = lambda feed: [
            d for n, d in enumerate(feed) if n < self.before or decode_entry(d).header.author != author
        ]

    def thaw(self) -> None:
        self.author = b""
        self.edit = lambda feed: feed

    async def heads(self) -> Sequence[bytes]:
        heads = await super().heads()
        return (
            heads
            if not self.author
            else [*(h for h in heads if self.relay.heads_author(h) != self.author), *self.frozen]
        )


async def writes(story: Post, name: str, file: bytes) -> None:
    story.user(name).write(file, file)
    await story.posted(name)


@simulated
async def test_what_the_relay_keeps_from_one_of_two_who_are_connected_is_noticed() -> None:
    async with mailed() as story:
        await three(story)
        await story.stop("two")
        liar = story.services["two"] = Freezing(story.relay, story.services["two"].keys)
        await story.again("two")
        await story.until(lambda: bool(story.folder("two").mailroom.mailboxes))
        await story.until(lambda: story.mailbox("two").reader.caught_up)
        await story.stop("three")
        liar.freeze(story.services["one"].keys.device_id)
        letters = story.letter("one"), story.letter("two")
        story.sim.network.part(*letters)
        await writes(story, "one", b"secret")
        await trio.sleep(2 * JUDGE_EVERY)
        assert not story.problems("two")
        story.sim.network.unite(*letters)
        await story.until(lambda: "relay-withholds" in story.problems("two"), timeout=JUDGE_EVERY / 2)
        assert not story.problems("one")
        # It shows everything after all.
        liar.thaw()
        await story.until(lambda: "relay-withholds" not in story.problems("two"), timeout=2 * JUDGE_EVERY)


@simulated
async def test_an_honest_relay_is_not_suspected_however_busy_everybody_is() -> None:
    async with mailed(slow=0.2, lost_answer=0.1) as story:
        await three(story)
        for number in range(15):
            name = ("one", "two", "three")[number % 3]
            story.user(name).write(b"f%d" % number, b"%d" % number)
            await story.nodes[name].folder_scan(LABEL) if number % 5 == 0 else await trio.sleep(11)
        await trio.sleep(JUDGE_EVERY)
        for name in ("one", "two", "three"):
            assert len(contents(story, name)) == 15
            assert not {"relay-withholds", "relay-fork", "relay-rollback"} & story.problems(name)


def told(story: Post, name: str, headers: Iterable[Header], relay: bytes = NAME) -> None:
    """A member tells these heads."""
    folder = story.folder(name)
    folder.mailroom.hear_heads(m.MailboxHeads(folder.id, relay, [header.encoded for header in headers]))


@simulated
async def test_a_head_that_contradicts_what_is_here_is_proof_against_its_author() -> None:
    async with mailed() as story:
        await three(story)
        await writes(story, "one", b"f")
        tip = story.mailbox("one").journal.chains.tips[story.mailbox("one").journal.chains.own]
        await story.until(lambda: story.mailbox("two").journal.chains.tips.get(tip.key) == tip)
        chain = [e for data in story.relay.feed if (e := decode_entry(data)).header.key == tip.key]
        before = chain[-2].header if len(chain) > 1 else None
        other = next_slot(story.folder("one").id, tip.key, before, tip.kind, tip.key_id)
        forged = other.sign(story.folder("one").context.keys, b"x" * 100).header
        told(story, "two", [forged])
        await story.until(lambda: "relay-fork" in story.problems("two"), timeout=300)


@simulated
async def test_what_proves_nothing_is_passed_over() -> None:
    async with mailed() as story:
        await three(story)
        await writes(story, "one", b"f")
        two, one = story.mailbox("two"), story.mailbox("one")
        tip = one.journal.chains.tips[one.journal.chains.own]
        await story.until(lambda: two.journal.chains.tips.get(tip.key) == tip)
        await trio.sleep(5)  # whatever was to be asked because of the file
        asked = story.services["two"].calls
        later = next_slot(story.folder("one").id, tip.key, tip, tip.kind, tip.key_id)
        signed = later.sign(story.folder("one").context.keys, b"x" * 100).header
        told(story, "two", [tip, *one.heads])  # known
        told(story, "two", [signed], relay=b"another".ljust(32, b"."))
        folder = story.folder("two")
        folder.mailroom.hear_heads(m.MailboxHeads(folder.id, NAME, [b"junk", signed.encoded[:-1] + b"\0"]))
        await trio.sleep(1)
        assert not two.reader.misses_heard
        assert story.services["two"].calls == asked
        told(story, "two", [signed])
        assert two.reader.misses_heard
        await story.until(lambda: "relay-withholds" in story.problems("two"), timeout=300)


@simulated
async def test_what_was_told_is_verified_once_however_often_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mailed() as story:
        await three(story)
        one, two = story.mailbox("one"), story.mailbox("two")
        await story.until(lambda: two.journal.chains.tips.keys() >= one.journal.chains.tips.keys())
        tip = one.journal.chains.tips[one.journal.chains.own]
        later = next_slot(story.folder("one").id, tip.key, tip, tip.kind, tip.key_id)
        signed = later.sign(story.folder("one").context.keys, b"x" * 100).header
        verified: list[bytes] = []
        verify = entries.verify_signature

        def counted(signer: bytes, label: bytes, data: bytes, signature: bytes) -> None:
            verified.append(signature)
            verify(signer, label, data, signature)

        monkeypatch.setattr(entries, "verify_signature", counted)
        told(story, "two", [signed])
        assert all(two.reader.misses_heard for _ in range(10))
        assert verified == [signed.signature]
