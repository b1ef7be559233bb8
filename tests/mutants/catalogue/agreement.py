"""Bugs of causality and convergence: which version follows which, who wins, and whether all come to know it."""

from __future__ import annotations

from tests.mutants.mutant import Mutant, edit

INDEX = "tests/index/test_index.py"
MERKLE = "tests/model/test_merkle.py"
RECORDS = "tests/model/test_records.py"
RULES = "tests/reconcile/test_rules.py"
CONVERGE = "tests/reconcile/test_convergence.py::test_converge"
CALM = "tests/simulation/test_calm.py"
PEERS = "tests/sync/test_peers.py"
LOST = "tests/sync/test_lost.py"
STANDING = "tests/sync/test_standing.py"

MUTANTS = (
    Mutant(
        "join-forgets-a-component",
        "Joining two version vectors takes the other's counters and forgets own ones: edits look concurrent for ever, "
        "or lost (#10590: ghost counters).",
        (edit("model/versions.py", "        merged = dict(self.entries)\n", "        merged = {}\n"),),
        (f"{RECORDS}::test_join_is_a_least_upper_bound",),
    ),
    Mutant(
        "last-writer-by-wall-clock-wins",
        "Among concurrent versions the later time stamp wins, so a device with a fast clock wins always (ownCloud and "
        "most tools before version vectors).",
        (
            edit(
                "model/records.py",
                "directory and not record.deleted, record.dot.counter, record.dot.replica)",
                "directory and not record.deleted, record.mtime_ns, record.dot.replica)",
            ),
        ),
        (f"{RECORDS}::test_no_clock_decides_who_wins",),
    ),
    Mutant(
        "delete-beats-edit",
        "A deletion wins over a concurrent edit with a lower counter: the edit is gone (I10).",
        (
            edit(
                "model/records.py",
                "    return (not record.deleted, directory and not record.deleted, record.dot.counter,",
                "    return (True, directory and not record.deleted, record.dot.counter,",
            ),
        ),
        (f"{RECORDS}::test_a_version_wins_over_any_deletion", CONVERGE),
    ),
    Mutant(
        "duplicate-delivered-twice-counts-twice",
        "A record that arrives twice stands twice (at-least-once delivery without idempotence).",
        (
            edit(
                "index/writer.py",
                "        if any(s.encoded == sibling.encoded for s in before):\n            return False\n",
                "",
            ),
            edit(
                "model/records.py",
                "                case Order.EQUAL if other.encode() >= record.encode():\n                    break\n",
                "                case Order.EQUAL:\n                    kept.append(other)\n",
            ),
        ),
        (f"{RECORDS}::test_merge_does_not_depend_on_order_or_repetition",),
    ),
    Mutant(
        "dominated-record-kept",
        "A record that a newer one includes stays beside it: every edit becomes a conflict.",
        (
            edit(
                "model/records.py",
                "                case Order.CONCURRENT:\n                    kept.append(other)\n",
                "                case Order.CONCURRENT | Order.AFTER:\n                    kept.append(other)\n",
            ),
        ),
        (f"{RECORDS}::test_merge_does_not_depend_on_order_or_repetition", f"{INDEX}"),
    ),
    Mutant(
        "clock-ignores-what-was-received",
        "A device counts its own events only: its next edit has a lower number than what it follows (no Lamport "
        "clock).",
        (edit("index/writer.py", "        state.clock = highest\n", ""),),
        (f"{INDEX}::test_ticks_follow_every_counter_seen",),
    ),
    Mutant(
        "clock-driven-to-its-end",
        "Any counter is believed: one record from a broken or hostile device uses the folder's clock up, and nobody "
        "can write any more.",
        (edit("index/writer.py", "                if counter > limit:\n", "                if False:\n"),),
        (f"{INDEX}::test_a_counter_far_ahead_is_refused",),
    ),
    Mutant(
        "edit-follows-what-the-index-knows",
        "A local edit supersedes versions that are known here but were never on this disk: they are lost without a "
        "conflict (#2416, PR #1852).",
        (
            edit(
                "reconcile/observe.py",
                "        seen = sibling.deleted or (synced is not None and sibling.identity in shown)",
                "        seen = True",
            ),
        ),
        (f"{RULES}::test_an_edit_follows_what_was_on_the_disk_not_what_the_index_knows", CONVERGE, CALM),
    ),
    Mutant(
        "no-conflict-copy",
        "The losing version of a conflict is replaced like an old one (#220).",
        (
            edit(
                "reconcile/plan.py",
                "    losers = [s for s in siblings if s.identity == here.identity and s.identity != wanted.identity]",
                "    losers: list[FileRecord] = []",
            ),
        ),
        (RULES, CONVERGE, CALM),
    ),
    Mutant(
        "conflict-name-from-the-local-clock",
        "The conflict copy is named after the time at which it is made: two devices that settle the same conflict make "
        "two copies (Dropbox, “Mysteries of Dropbox”).",
        (
            edit(
                "reconcile/conflicts.py",
                "    return _free_name(conflict_name(record.path, device, record.mtime_ns), unique, look_up, kept)",
                "    import time\n\n"
                "    return _free_name(conflict_name(record.path, device, time.time_ns()), unique, look_up, kept)",
            ),
        ),
        ("tests/reconcile/test_conflicts.py",),
    ),
    Mutant(
        "file-gives-way-to-a-directory-and-is-gone",
        "Where a file and a directory of one name meet, the file goes to history only (#9371, #1787).",
        (
            edit(
                "reconcile/plan.py",
                "    return _copy_of([s for s in siblings if s.identity == here.identity], look_up)\n",
                "    return None\n",
            ),
        ),
        (f"{RULES}::test_a_file_makes_room_for_what_lives_below_its_name", CONVERGE),
    ),
    Mutant(
        "deleted-directory-takes-a-living-child",
        "A directory's deletion is carried out although something below it lives (I10; Seafile #383).",
        (
            edit(
                "model/entries.py",
                "    if wanted.deleted or (wanted.kind is not Kind.DIRECTORY and live_descendants):\n"
                "        if live_descendants:",
                "    if wanted.deleted or (wanted.kind is not Kind.DIRECTORY and live_descendants):\n"
                "        if live_descendants and not wanted.deleted:",
            ),
            edit(
                "reconcile/plan.py",
                '        if live_descendants:\n            reason = f"{display(path)} is deleted as a file,',
                "        if live_descendants and here.kind is not Kind.DIRECTORY:\n"
                '            reason = f"{display(path)} is deleted as a file,',
            ),
        ),
        (f"{RULES}::test_a_live_entry_keeps_the_directory_its_parent_lost", INDEX),
    ),
    Mutant(
        "chunk-order-not-bound",
        "The content's root names its chunks and not their order: a file with two chunks exchanged passes for the "
        "original (hash of a set instead of a list).",
        (
            edit(
                "model/manifest.py",
                '    return labelled(b"p2psync content", encoded)',
                "    algorithm, chunker, size, hashes, runs = _decoder.decode(encoded)\n"
                "    parts = sorted(hashes[i : i + DIGEST_SIZE] for i in range(0, len(hashes), DIGEST_SIZE))\n"
                '    return labelled(b"p2psync content", _encoder.encode((algorithm, chunker, size, parts, runs)))',
            ),
        ),
        ("tests/model/test_paths.py::test_the_root_binds_the_order_of_chunks",),
    ),
    Mutant(
        "merkle-leaf-ignores-a-sibling",
        "The summary of a path covers its winner only: devices that know different conflicts call themselves equal.",
        (
            edit(
                "model/merkle.py",
                '    return labelled(b"p2psync leaf", key, *sorted(record_ids))',
                '    return labelled(b"p2psync leaf", key, max(record_ids))',
            ),
        ),
        (f"{MERKLE}::test_order_of_records_does_not_matter_but_their_set_does",),
    ),
    Mutant(
        "merkle-descent-stops-early",
        "The comparison does not go down to the last level of a deep summary: differences there are never found.",
        (
            edit(
                "model/descent.py",
                "            if child.size:\n",
                "            if child.size and len(below) > 1 and child.size <= BUCKET:\n"
                "                continue\n"
                "            if child.size:\n",
            ),
        ),
        (f"{MERKLE}::test_one_side_has_little",),
    ),
    Mutant(
        "merkle-one-way",
        "Where the other side has nothing below a prefix, what only we have is not sent.",
        (
            edit(
                "model/descent.py",
                "                self.mine_to_send.extend(key for key, _ in self._store.leaves(below))",
                "                continue",
            ),
        ),
        (f"{MERKLE}::test_what_stands_below_a_prefix_on_one_side_only_is_found",),
    ),
    Mutant(
        "news-during-a-pause-lost",
        "A peer that takes a folder up again is not told what happened meanwhile: what was sent into the pause counts "
        "as delivered (dropped mailbox on reconnect).",
        (
            edit(
                "sync/exchange.py",
                "            self._restart = True\n            self._context.records_changed.fire()\n",
                "            self._context.records_changed.fire()\n",
            ),
        ),
        (f"{PEERS}::test_what_was_sent_into_a_pause_is_sent_again_after_it",),
    ),
    Mutant(
        "each-waits-for-the-other-to-say-more",
        "Who has announced itself in full takes a hash that it cannot read for no news: what it had announced was lost "
        "between two connections, and two devices that differ wait for each other (found in simulation).",
        (
            edit(
                "sync/standing.py",
                "            self._again = self._told is not None\n",
                "            self._again = self._told is not None and (announce is not None or not self._in_full)\n",
            ),
        ),
        (f"{STANDING}::test_both_learn_where_the_other_stands_whenever_each_begins",),
    ),
    Mutant(
        "brake-counts-each-batch-alone",
        "The brake looks at one batch at a time: a mass deletion in many small ones passes (Nextcloud desktop #260, "
        "#1433).",
        (
            edit(
                "reconcile/guards.py",
                "self._problem([*recent, tally], whole)",
                "self._problem([tally], whole)",
            ),
        ),
        ("tests/reconcile/test_guards.py::test_many_small_batches_add_up_within_the_window_only",),
    ),
    Mutant(
        "incoming-brake-released",
        "Mass deletions by another device are carried out at once (Seafile #1398, Nextcloud desktop #7831).",
        (
            edit(
                "sync/applier.py",
                "        if context.confirmed_incoming or self._guard.check(",
                "        if True or self._guard.check(",
            ),
        ),
        (f"{PEERS}::test_a_mass_removal_by_another_device_waits_for_a_person_here",),
    ),
    Mutant(
        "given-up-without-the-absent",
        "What no connected member has is given up, though a member that is away may have it (a file that everyone "
        "waits for for ever, cured by deleting it everywhere).",
        (
            edit(
                "sync/lost.py",
                "        return all(device in self._exchanges for device in self._context.others())\n",
                "        return True\n",
            ),
        ),
        (f"{LOST}::test_nothing_is_given_up_while_a_member_is_away",),
    ),
    Mutant(
        "given-up-only-at-one-moment",
        "Whether all agree is asked of the moment of a look: a scan anywhere, or a change, begins the wait anew, "
        "and what nobody has is waited for as long as looks and changes happen to coincide.",
        (edit("sync/lost.py", "if lost.nowhere and self._everyone()]", "if lost.nowhere and self.agreed()]"),),
        (f"{LOST}::test_what_else_goes_on_does_not_put_it_off",),
    ),
    Mutant(
        "not-now-taken-for-never",
        "A device that cannot read a file just now counts as one that has not got it, and what it has is given up.",
        (
            edit(
                "sync/contents.py",
                "            if verdict in {None, Refusal.GONE}:\n",
                "            if verdict in {None, Refusal.GONE, Refusal.LATER}:\n",
            ),
            edit("sync/contents.py", "                elif item is Absent.GONE:\n", "                else:\n"),
        ),
        (f"{LOST}::test_who_cannot_answer_now_has_not_said_that_it_has_nothing",),
    ),
)
