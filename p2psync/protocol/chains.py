"""What a member of a mailbox knows of its chains, and what an entry or a list of heads proves about author and relay.

The rules are those of fork-consistent storage on a server that is not trusted (Li, Krohn, Mazières, Shasha: "Secure
Untrusted Data Repository (SUNDR)", 2004): per chain the newest entry seen is remembered for good, and whatever does
not follow it is evidence. Everything here is values in, decisions out: the caller stores what a decision says in the
same transaction as what the entry holds.

Whether an author may write at all is the membership's matter and comes first: a chain of somebody who is no member is
not shown to `Chains`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import msgspec

from p2psync.errors import AuthenticationError, InputError
from p2psync.protocol.mailbox import MAX_HEADS, ChainKey, Head, Header, decode_header

STALE_AFTER_S = 7 * 86400
"""A mailbox whose state no other member has confirmed for so long is shown as stale."""
MAX_AHEAD_S = 86400
"""A statement from further in the future than this says nothing about freshness: its author's clock is wrong."""


# ── what an entry proves ────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class ForkProof:
    """Two headers signed for places in one chain that cannot both be: whoever sees them knows that their author lies.

    Either both have one number, or the second follows the first by number and names another entry as the one before.
    """

    first: Header
    second: Header

    @property
    def signer(self) -> bytes:
        """The author's public key."""
        return self.first.signer

    @cached_property
    def encoded(self) -> bytes:
        """What is stored and passed on."""
        return _encoder.encode((self.first.encoded, self.second.encoded))

    def verify(self) -> None:
        """AuthenticationError unless this proves a fork to somebody who knows nothing else."""
        if not _contradict(self.first, self.second):
            raise AuthenticationError("two mailbox headers do not prove a fork")
        self.first.verify()
        self.second.verify()


@dataclass(frozen=True, slots=True)
class Fresh:
    """The next entry of its chain: take it in, and store `header` as the chain's newest."""

    header: Header


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Known already, or a replay: ignore it."""

    header: Header


@dataclass(frozen=True, slots=True)
class Gap:
    """`seen` proves that the entries after number `have` exist, and they were not shown. Take nothing in.

    Read the feed anew, from its beginning or the snapshot, for a relay that leaves one out may have counted on without
    it; what is known is a duplicate. When the missing ones stay away the relay withholds them.
    """

    have: int
    seen: Header


@dataclass(frozen=True, slots=True)
class Fork:
    """The author signed two histories: store the proof, take nothing more from this author, tell people."""

    proof: ForkProof


@dataclass(frozen=True, slots=True)
class Frozen:
    """An entry of an author who forked before: ignore it."""

    proof: ForkProof


@dataclass(frozen=True, slots=True)
class OwnRollback:
    """This device signed `seen` in an earlier life of its index: begin a new incarnation and a new chain (I7)."""

    seen: Header


Decision = Fresh | Duplicate | Gap | Fork | Frozen | OwnRollback


# ── what a list of heads proves ─────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, slots=True)
class Behind:
    """Entries up to `head` exist and were not read yet: read the feed to its end and judge again."""

    have: int
    head: Header


@dataclass(frozen=True, slots=True)
class Withheld:
    """Entries up to `head` exist, and the relay's feed ended without those after number `have`."""

    have: int
    head: Header


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The relay shows a chain up to number `shown` only, and has shown or acknowledged `known` before."""

    shown: int
    known: Header


@dataclass(frozen=True, slots=True)
class Regressed:
    """What is given as an author's newest statement is not: a replay, or the author's own state went back."""

    key: ChainKey
    counter: int
    known: int


Finding = Behind | Withheld | RolledBack | Regressed | Fork | OwnRollback


@dataclass(frozen=True, slots=True)
class Statement:
    """The newest statement of freshness heard from one chain; `time` is seconds since the epoch by its author."""

    key: ChainKey
    counter: int
    time: int


class Chains:
    """The view one device has of one mailbox.

    Args:
        folder: The mailbox's folder.
        own: The chain this device adds to.
        tips: The newest entry taken in of every chain; of own chains the newest that the relay acknowledged or showed.
        forks: What was found before.
        statements: The newest statement of freshness of every chain that made one.
        unsent: What this device has signed in that chain and nobody has acknowledged or shown yet, in order. It must
            be stored before it is posted.
    """

    def __init__(
        self,
        folder: bytes,
        own: ChainKey,
        *,
        tips: Iterable[Header] = (),
        forks: Iterable[ForkProof] = (),
        statements: Iterable[Statement] = (),
        unsent: Iterable[Header] = (),
    ) -> None:
        self.folder = folder
        self.own = own
        self.tips = {tip.key: tip for tip in tips}
        self.forks = {proof.signer: proof for proof in forks}
        self.statements = {statement.key: statement for statement in statements}
        self.unsent = list(unsent)

    def judge(self, header: Header) -> Decision:
        """What to do with an entry; changes nothing.

        Raises:
            AuthenticationError: It is not by its author or not of this folder. An honest relay has no such entry.
            InputError: It would begin more chains than a mailbox may have.
        """
        if header.folder != self.folder:
            raise AuthenticationError("a mailbox entry belongs to another folder")
        proof, tip = self.forks.get(header.signer), self.tips.get(header.key)
        if proof is not None:
            return Frozen(proof)
        if tip is not None and tip.hash == header.hash:
            return Duplicate(header)
        header.verify()
        evidence = self._evidence(tip, header)
        if evidence is not None:
            return evidence
        have = tip.seq if tip is not None else 0
        if header.seq <= have:
            return Duplicate(header)
        if header.seq > have + 1:
            return Gap(have, header)
        if tip is None and len(self.tips) >= MAX_HEADS:
            raise InputError(f"a mailbox has at most {MAX_HEADS} chains")
        return Fresh(header)

    def apply(self, decision: Decision | Finding) -> None:
        """Take over what a decision or finding changes here: the newest entry, or that an author forked."""
        match decision:
            case Fresh(header=header):
                self.tips[header.key] = header
                if header.key == self.own:
                    self.unsent = [own for own in self.unsent if own.seq > header.seq]
            case Fork(proof=proof):
                self.forks[proof.signer] = proof
            case _:
                pass

    def adopt(self, heads: Iterable[Header]) -> Iterator[Decision]:
        """Heads of a snapshot that was taken in: Fresh where it is ahead of what is known, Fork where it contradicts.

        Apply each before the next. Raises as `judge`; then the snapshot must not be believed.
        """
        for header in heads:
            match self.judge(header):
                case Gap():
                    yield Fresh(header)
                case decision:
                    yield decision

    # ── freshness ───────────────────────────────────────────────────────────────────────────────────────────────────
    def judge_heads(self, key: ChainKey, head: Head, *, caught_up: bool, newest: bool = False) -> list[Finding]:
        """What another member's statement proves, whatever way it came.

        `caught_up` says that the relay's feed has been read to the statement itself, or, when it came another way, to
        an end that was asked for after it came. Only then something missing is withheld. `newest` says that it was
        given as what its author says now; the feed also holds what its author said before.

        Raises:
            AuthenticationError: The statement names what its author cannot have seen; it is worth nothing.
        """
        known = self.statements.get(key)
        if newest and known is not None and head.counter < known.counter:
            return [Regressed(key, head.counter, known.counter)]
        return [finding for header in head.heads if (finding := self._missing(header, caught_up)) is not None]

    def judge_relay(
        self, heads: Iterable[Header], *, asked_with: Mapping[ChainKey, Header], caught_up: bool
    ) -> list[Finding]:
        """What the relay's own list of the newest entry of every chain proves; the list must be complete.

        `asked_with` is a copy of `tips` from when the list was asked for: what was read or acknowledged meanwhile need
        not be in it. `caught_up` says that the feed has been read to an end that was asked for after the list came.
        An operator who restored an old backup looks like this too: for what was lost it makes no difference.

        Raises:
            AuthenticationError: The list holds what no author signed.
        """
        findings: list[Finding] = []
        shown = {header.key: header for header in heads}
        for header in shown.values():
            finding = self._missing(header, caught_up)
            if finding is not None:
                findings.append(finding)
        for key, tip in asked_with.items():
            seq = shown[key].seq if key in shown else 0
            if seq < tip.seq and key.signer not in self.forks:
                findings.append(RolledBack(seq, tip))
        return findings

    def heard(self, key: ChainKey, head: Head) -> Statement:
        """Take note of a statement; returns what to store of its chain."""
        known = self.statements.get(key)
        if known is None or known.counter < head.counter:
            self.statements[key] = Statement(key, head.counter, head.time)
        return self.statements[key]

    def stale_since(self, now: int, joined: int) -> int | None:
        """Since when no other member has confirmed this mailbox's state, when that is too long; else None.

        `joined` is when this device first saw the mailbox. It accuses nobody: the others may all have been away.
        """
        times = (
            s.time for s in self.statements.values() if s.key.signer != self.own.signer and s.time <= now + MAX_AHEAD_S
        )
        newest = max(times, default=joined)
        return newest if now - newest > STALE_AFTER_S else None

    # ── details ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def _missing(self, header: Header, caught_up: bool) -> Finding | None:
        """What the bare existence of an entry proves."""
        if header.folder != self.folder:
            raise AuthenticationError("a mailbox entry belongs to another folder")
        tip = self.tips.get(header.key)
        if header.signer in self.forks or (tip is not None and tip.hash == header.hash):
            return None
        header.verify()
        evidence = self._evidence(tip, header)
        if evidence is not None:
            return evidence
        have = tip.seq if tip is not None else 0
        if header.seq <= have:
            return None
        return Withheld(have, header) if caught_up else Behind(have, header)

    def _evidence(self, tip: Header | None, header: Header) -> Fork | OwnRollback | None:
        """Whether a verified header cannot belong to the history known here."""
        if header.key == self.own:
            return None if self._is_own(tip, header) else OwnRollback(header)
        if tip is not None and _contradict(tip, header):
            return Fork(ForkProof(*sorted((tip, header), key=lambda one: one.seq)))
        return None

    def _is_own(self, tip: Header | None, header: Header) -> bool:
        """Whether this life of the index has signed an entry of its own chain, as far as it can tell."""
        if tip is not None and header.seq <= tip.seq:
            return not _contradict(tip, header)
        return any(own.hash == header.hash for own in self.unsent)


def decode_fork_proof(data: bytes) -> ForkProof:
    """Read a proof; InputError for malformed bytes, AuthenticationError when it proves nothing."""
    try:
        first, second = _proof_decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(f"malformed proof of a fork: {error}") from None
    proof = ForkProof(decode_header(first), decode_header(second))
    proof.verify()
    return proof


_encoder = msgspec.msgpack.Encoder()
_proof_decoder = msgspec.msgpack.Decoder(tuple[bytes, bytes])


def _contradict(one: Header, other: Header) -> bool:
    """Whether two headers cannot both be in one chain."""
    if one.folder != other.folder or one.key != other.key:
        return False
    first, second = sorted((one, other), key=lambda header: header.seq)
    if first.seq == second.seq:
        return first.hash != second.hash
    return second.seq == first.seq + 1 and second.prev != first.hash
