"""Bugs of trust: what is accepted from a peer, and who may say and see what."""

from __future__ import annotations

from tests.mutants.mutant import Mutant, edit

BATCHES = "tests/membership/test_batches.py"
FOLD = "tests/membership/test_fold.py"
PEERS = "tests/sync/test_peers.py"
TRANSPORT = "tests/crypto/test_transport.py"

MUTANTS = (
    Mutant(
        "signature-not-checked",
        "Whoever relays a record may have written it.",
        (
            edit(
                "membership/batches.py",
                "    verify_signature(batch.signer, BATCH_LABEL, batch.signed_bytes(), batch.signature)\n",
                "",
            ),
        ),
        (f"{BATCHES}::test_a_changed_batch_is_refused",),
    ),
    Mutant(
        "record-not-the-signed-one",
        "The signature covers ids, and nobody compares the record with its id.",
        (
            edit(
                "membership/batches.py",
                """\
            not 0 <= index < batch.count
            or record_id(data) != batch.ids[index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE]
""",
                "            not 0 <= index < batch.count\n",
            ),
        ),
        (f"{BATCHES}::test_records_that_were_not_signed_or_are_of_another_device_are_refused",),
    ),
    Mutant(
        "viewer-may-write",
        "Roles are kept by the honest client only: a patched viewer's records are accepted (receive-only folders).",
        (
            edit(
                "membership/batches.py",
                "        if not membership.may_write(author, dot.replica, dot.counter):",
                "        if False:",
            ),
        ),
        (f"{BATCHES}::test_viewer_is_refused_by_name",),
    ),
    Mutant(
        "cut-off-ignored",
        "What a removed device writes afterwards still counts: the cut-off of its removal is not looked at.",
        (
            edit(
                "membership/fold.py",
                "        return not self.closers or any(",
                "        return True or any(",
            ),
        ),
        (f"{BATCHES}::test_records_above_the_cut_are_refused",),
    ),
    Mutant(
        "removal-does-not-win",
        "What a removed owner did at the same time as its removal stands: it can keep itself in by inviting a second "
        "self.",
        (
            edit(
                "membership/graph.py",
                "        if node.attackers & self._valid:\n            return False\n",
                "",
            ),
        ),
        (f"{FOLD}::test_removal_wins_over_what_its_target_did_at_the_same_time",),
    ),
    Mutant(
        "content-for-whoever-asks",
        "Content is served to any connected device, member of the folder or not (Resilio-like link semantics).",
        (edit("sync/serving.py", "        if not context.membership.may_read(device):", "        if False:"),),
        (f"{PEERS}::test_content_is_for_members_only",),
    ),
    Mutant(
        "path-out-of-the-folder",
        "A record may name `../../.ssh/authorized_keys`.",
        (edit("model/paths.py", '    if name in {b".", b".."} or b"/" in name', '    if b"/" in name'),),
        ("tests/model/test_paths.py",),
    ),
    Mutant(
        "private-directory-writable-by-peers",
        "A record may name the marker or the history in the private directory, in another case if need be "
        "(CVE-2014-9390 of git).",
        (
            edit(
                "model/paths.py",
                "    if fold(parts[0]) == PRIVATE_DIRECTORY:",
                "    if parts[0] == PRIVATE_DIRECTORY:",
            ),
        ),
        ("tests/model/test_paths.py",),
    ),
    Mutant(
        "chunk-not-verified-on-receive",
        "What a peer sends is stored without comparing its hash.",
        (
            edit(
                "workspace/staging.py",
                "        if len(data) != length or digest(self.manifest.algorithm, data) != expected:",
                "        if len(data) != length:",
            ),
        ),
        ("tests/workspace/test_staging.py::test_a_stage_resumes_with_what_it_verified",),
    ),
    Mutant(
        "small-chunk-not-verified-on-receive",
        "The short way for small files forgets to compare the hash.",
        (
            edit(
                "sync/contents.py",
                "            if digest(algorithms[chunk], content) != chunk:\n"
                '                raise IntegrityError("a chunk does not match its hash")\n',
                "",
            ),
        ),
        (f"{PEERS}::test_a_peer_that_sends_other_bytes_gets_none_of_them_in",),
    ),
    Mutant(
        "manifest-not-verified",
        "The list of a large file's chunks is taken as it comes (#7631: blocks that nobody can verify).",
        (
            edit(
                "sync/contents.py",
                "                if content_root(encoded) != root:\n"
                '                    raise IntegrityError("a manifest does not match its root")\n',
                "",
            ),
        ),
        (f"{PEERS}::test_a_peer_that_sends_another_manifest_gets_none_of_it_in",),
    ),
    Mutant(
        "nonce-reused",
        "Every frame is sealed with the same nonce: two frames give away their difference, and any frame can be "
        "replayed (KRACK).",
        (
            edit(
                "crypto/transport.py",
                '        return self._frames.to_bytes(12, "big")',
                "        return bytes(12)",
            ),
        ),
        (f"{TRANSPORT}::test_lost_repeated_and_reordered_frames_are_found",),
    ),
    Mutant(
        "replayed-handshake-accepted",
        "A recorded first message brings the channel up again, as the old device: nobody has to prove that it is here "
        "now (0-RTT replay).",
        (
            edit(
                "crypto/handshake.py",
                "            if not hmac.compare_digest(message, self._confirmation(noise)):\n"
                '                raise AuthenticationError("the handshake was not confirmed")\n',
                "",
            ),
        ),
        ("tests/crypto/test_handshake.py::test_a_replayed_ik_message_establishes_nothing",),
    ),
    Mutant(
        "any-device-answers",
        "The dialled device may be another than the one that was meant: its key is checked against its own card only.",
        (
            edit(
                "crypto/handshake.py",
                "        if self._expected is not None and card.device_id != self._expected:",
                "        if False:",
            ),
        ),
        ("tests/crypto/test_handshake.py::test_another_device_than_the_expected_is_refused_before_we_say_who_we_are",),
    ),
    Mutant(
        "handshake-length-unbounded",
        "The length field of a handshake message is believed before anything is known of the other side "
        "(CVE-2021-21404, PR #10595).",
        (
            edit(
                "crypto/handshake.py",
                "not 0 < length <= MAX_MESSAGE:",
                "not 0 < length:",
            ),
        ),
        ("tests/crypto/test_handshake.py::test_lengths_are_bounded_before_anything_is_buffered",),
    ),
    Mutant(
        "delta-taken-for-the-chunk",
        "What leaves and ranges were put together to is not hashed before it is handed on: a leaf that lies, or an "
        "edit under the copying, is blamed on a device that gave what it has, and that one is not asked any more.",
        (
            edit(
                "sync/deltas.py",
                "        return memoryview(chunk) if digest(self.algorithm, chunk) == piece.hash else None\n",
                "        return memoryview(chunk)\n",
            ),
        ),
        ("tests/sync/test_deltas.py",),
    ),
    Mutant(
        "chunk-of-another-length",
        "A manifest that names a wrong length for a chunk gets the chunk all the same: written where the shorter one "
        "should be it goes over its neighbour, and sent to who asked it ends the connection of two honest devices.",
        (edit("sync/contents.py", "if stage.manifest.lengths[index] == length and (data", "if (data"),),
        ("tests/sync/test_deltas.py",),
    ),
    Mutant(
        "more-parts-than-may-be",
        "Each chunk of a request is given as many parts as a request may have: two that were edited all over make one "
        "that breaks the protocol.",
        (edit("sync/deltas.py", "plan(piece, named, left + 1)", "plan(piece, named, MAX_RANGES)"),),
        ("tests/sync/test_deltas.py",),
    ),
    Mutant(
        "cuts-known-to-everybody",
        "All folders are cut alike, so that the lengths of its chunks tell a relay which known file is there (chunking "
        "attacks on backup services).",
        (edit("sync/context.py", "self.world.longest_chunk, membership.seed)\n", "self.world.longest_chunk)\n"),),
        ("tests/sync/test_deltas.py",),
    ),
    Mutant(
        "reply-longer-than-asked",
        "A peer may send more than was asked for, and memory is found for it.",
        (
            edit(
                "protocol/bulk.py",
                "        if self.done or frame.offset != self._filled or end > len(self._buffer):",
                "        if self.done or frame.offset != self._filled:",
            ),
            edit(
                "protocol/bulk.py",
                "            if length < _LATER and (length > asked or (length != asked and not self._at_most)):",
                "            if False:",
            ),
        ),
        ("tests/protocol/test_bulk.py",),
    ),
    Mutant(
        "pairing-code-tried-often",
        "A short pairing code can be guessed by trying: a failed try does not use it up.",
        (
            edit(
                "crypto/pairing.py",
                "        entry = self._live.pop(nameplate, None)\n",
                "        entry = self._live.get(nameplate)\n",
            ),
        ),
        ("tests/crypto/test_pairing.py::test_a_code_can_be_tried_once",),
    ),
)
