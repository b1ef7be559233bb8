"""Bugs of durability: what is on the disk, what the index says of it, and what a crash leaves of both."""

from __future__ import annotations

from tests.mutants.mutant import Mutant, edit

INDEX = "tests/index/test_index.py"
LMDB = "tests/index/test_lmdb_store.py"
RECOVERY = "tests/workspace/test_recovery.py"
STAGING = "tests/workspace/test_staging.py"
STORIES = "tests/sync/test_stories.py"
DURABLE = "tests/sync/test_durability.py"

MUTANTS = (
    Mutant(
        "small-file-not-synced",
        "Small files are placed without being synced: after a power cut they are there and empty (zero-length objects "
        "in restic, git and borg repositories).",
        (edit("sync/contents.py", "            context.root.sync_all()\n", ""),),
        (f"{DURABLE}::test_what_is_on_record_survives_a_power_cut",),
    ),
    Mutant(
        "large-file-not-synced",
        "Large files are placed without fsync.",
        (edit("sync/contents.py", "            await offload.run(stage.sync)\n", ""),),
        (f"{DURABLE}::test_what_is_on_record_survives_a_power_cut",),
    ),
    Mutant(
        "directory-not-synced",
        "Files are synced, the directories that name them are not: after a power cut the names are gone and count as "
        "deleted (ALICE, OSDI 14: the most frequent class of crash bugs).",
        (
            edit(
                "workspace/materialiser.py",
                "        for directory in self._mover.touched:\n",
                "        for directory in ():\n",
            ),
        ),
        (f"{RECOVERY}::test_no_power_cut_keeps_the_removal_of_a_directory_without_what_emptied_it",),
    ),
    Mutant(
        "directory-removed-before-what-left-it-is-safe",
        "A directory is removed while the renames out of it are not durable: a power cut may keep the removal only: "
        "what was moved out is then nowhere.",
        (
            edit(
                "workspace/materialiser.py",
                "        self._mover.touched.update(dict.fromkeys(directories))\n        self.sync()\n",
                "",
            ),
        ),
        (f"{RECOVERY}::test_no_power_cut_keeps_the_removal_of_a_directory_without_what_emptied_it",),
    ),
    Mutant(
        "metadata-not-synced",
        "A changed executable bit or time is recorded without being synced: after a power cut it is gone, and counts "
        "as a change by the person here.",
        (edit("workspace/materialiser.py", "        if self._metadata or len(", "        if len("),),
        (f"{RECOVERY}::test_metadata_that_was_set_survives_a_power_cut",),
    ),
    Mutant(
        "failed-sync-believed",
        "When syncing the directories fails, the batch is done all the same.",
        (
            edit(
                "workspace/materialiser.py",
                "        except OSError as error:\n"
                "            return [Failed(r.path, error) if isinstance(r, _Effect) else r for r in results]",
                "        except OSError:\n            pass",
            ),
        ),
        ("tests/workspace/test_materialiser.py::test_a_failed_sync_fails_everything_that_was_touched",),
    ),
    Mutant(
        "fsync-retried-and-believed",
        "After a failed fsync the same descriptor is synced once more, which succeeds, and the data is gone "
        "(PostgreSQL's fsyncgate, 2018).",
        (
            edit(
                "workspace/staging.py",
                "        except OSError:\n            self.discard()\n            raise\n\n    def close",
                "        except OSError:\n            self._file.sync()\n\n    def close",
            ),
        ),
        (f"{STAGING}::test_a_stage_whose_sync_failed_is_begun_anew",),
    ),
    Mutant(
        "content-shown-before-it-is-whole",
        "Nothing asks whether every chunk of a staged content was verified in that very file: a hole of zeros is shown "
        "(rsync --inplace, interrupted).",
        (edit("workspace/staging.py", "        if not self.done:\n", "        if False:\n"),),
        (f"{STAGING}::test_a_stage_that_lacks_a_chunk_is_never_made_durable",),
    ),
    Mutant(
        "zeros-left-to-the-hole",
        "A missing chunk of zeros is not written, although something else stands where the hole should be.",
        (
            edit(
                "workspace/staging.py",
                "            self._file.pwrite(data, offset)\n            self._have",
                "            if any(data):\n                self._file.pwrite(data, offset)\n            self._have",
            ),
        ),
        (f"{STAGING}::test_zeros_are_written_where_something_else_is",),
    ),
    Mutant(
        "received-for-one-counts-for-all",
        "A chunk that came for one content counts as received by another that began to want it meanwhile.",
        (
            edit(
                "transfer/swarm.py",
                "for want_id in stored_for if",
                "for want_id in self.lacking(piece) if",
            ),
        ),
        (
            "tests/transfer/test_sharing.py::test_who_joins_while_a_piece_is_being_stored_has_not_received_it",
            "tests/transfer/test_sharing.py",
        ),
    ),
    Mutant(
        "full-disk-is-success",
        "A content that did not fit on the disk is staged as far as it went (Seafile #177; #2792: 128-byte stubs).",
        (
            edit(
                "workspace/staging.py",
                "            except OSError:\n                file.close()\n                root.unlink(path)\n"
                "                raise\n            file.close()",
                "            except OSError:\n                pass\n            file.close()",
            ),
        ),
        (f"{STAGING}::test_a_content_that_does_not_fit_leaves_nothing",),
    ),
    Mutant(
        "temporary-left-behind",
        "What could not be written stays in the staging area for ever (Syncthing's .tmp files, #220).",
        (
            edit(
                "workspace/staging.py",
                "                file.close()\n                root.unlink(path)\n                raise",
                "                file.close()\n                raise",
            ),
        ),
        (f"{STAGING}::test_a_content_that_does_not_fit_leaves_nothing",),
    ),
    Mutant(
        "staged-file-visible",
        "Contents are assembled beside the files they become, where programs and other synchronizers see half of them "
        "(#2792).",
        (edit("workspace/staging.py", '    return TMP + b"/" + name + PART', '    return b".sync-" + name + PART'),),
        (f"{STAGING}::test_leftovers_are_swept_but_never_what_may_be_a_persons",),
    ),
    Mutant(
        "newest-version-pruned-first",
        "When history needs room, the version that was just replaced goes first (prune rules read the wrong way round: "
        "restic, borg).",
        (
            edit(
                "workspace/history.py",
                "    kept = list(versions(root))\n",
                "    kept = list(versions(root))[::-1]\n",
            ),
        ),
        ("tests/workspace/test_history.py::test_prune_by_age_and_size",),
    ),
    Mutant(
        "resumed-stage-trusted",
        "A stage found after a restart counts as complete where it has its size, whatever a crash left in it.",
        (
            edit(
                "workspace/staging.py",
                "        have[index] = file.pread_into(view, offset) == length and"
                " digest(manifest.algorithm, view) == expected",
                "        have[index] = file.pread_into(view, offset) == length",
            ),
        ),
        (f"{STAGING}::test_a_stage_resumes_with_what_it_verified",),
    ),
    Mutant(
        "recovery-forgets-the-swap",
        "After a crash between exchange and rename the old version, which stands in a temporary, is cleaned away.",
        (
            edit(
                "workspace/recovery.py",
                "    if temp is not None and not _ours(root, intent.temp, temp, intent):",
                "    if False:",
            ),
        ),
        (RECOVERY,),
    ),
    Mutant(
        "journal-cleared-too-early",
        "The journal is emptied before what it describes is durable, so recovery does not know whose files it finds.",
        (
            edit(
                "sync/performer.py",
                "            context.index.write(lambda writer: writer.put_intents(journal))\n",
                "            context.index.write(lambda writer: writer.put_intents(journal))\n"
                "            context.index.write(lambda writer: writer.clear_intents(i.id for i in journal))\n",
            ),
        ),
        (f"{DURABLE}::test_the_journal_stands_until_what_it_describes_is_durable",),
    ),
    Mutant(
        "failed-write-recorded",
        "What the disk refused is recorded as done: the old content stands under the new version for ever (Seafile "
        "#177).",
        (
            edit(
                "workspace/materialiser.py",
                "            with suppress(OSError, EscapeError):\n"
                "                return self._parent_problem(path) or Failed(path, error)",
                "            with suppress(OSError, EscapeError):\n"
                "                return self._parent_problem(path) or _Effect(path, self._root.stat(path))",
            ),
        ),
        ("tests/workspace/test_materialiser.py::test_an_error_of_any_call_loses_nothing",),
    ),
    Mutant(
        "announced-before-it-is-durable",
        "The index answers before its commit is on the disk, so announcements leave that a power cut undoes (LMDB with "
        "MDB_NOSYNC).",
        (
            edit(
                "index/lmdb_store.py",
                "                mode=0o600,\n            )",
                "                mode=0o600,\n                sync=False,\n            )",
            ),
        ),
        (f"{LMDB}::test_a_commit_waits_for_the_disk",),
    ),
    Mutant(
        "failed-commit-believed",
        "A commit that failed counts as done: what follows from it is announced.",
        (
            edit(
                "index/lmdb_store.py",
                "        txn.commit()\n",
                "        try:\n            txn.commit()\n        except lmdb.Error:\n            pass\n",
            ),
        ),
        (f"{LMDB}::test_after_a_failed_commit_nothing_goes_on",),
    ),
    Mutant(
        "torn-index-opened",
        "After an unclean end the index is opened without being verified.",
        (
            edit(
                "index/lmdb_store.py",
                '    serious = [text for text in findings if "a leak" not in text]',
                "    serious: list[str] = []",
            ),
        ),
        (f"{LMDB}::test_overwritten_pages_are_found_after_an_unclean_end",),
    ),
    Mutant(
        "cursor-ahead-of-the-records",
        "How far a peer's feed was read is stored before what was read: a crash in between skips records for good "
        "(announcements lost between queue and database).",
        (
            edit(
                "sync/exchange.py",
                "            opened, refused = open_groups(context.folder, message, membership)\n",
                "            opened, refused = open_groups(context.folder, message, membership)\n"
                "            if message.upto_sequence and message.index_id:\n"
                "                context.index.write(\n"
                "                    lambda w: w.set_cursor(peer, message.index_id, message.upto_sequence)\n"
                "                )\n",
            ),
        ),
        (f"{DURABLE}::test_a_cursor_never_runs_ahead_of_the_records",),
    ),
    Mutant(
        "tombstones-forgotten-at-restart",
        "A start tidies deletions away, and a device that was off line brings the files back (PR #10023, #10030, "
        "#1075, #3563).",
        (
            edit(
                "sync/life.py",
                "        writer.put_setting(_COMING, token)\n",
                "        writer.put_setting(_COMING, token)\n"
                "        writer.drop_records(lambda _, record: record.deleted)\n",
            ),
        ),
        (f"{DURABLE}::test_deletions_outlive_a_restart",),
    ),
    Mutant(
        "counters-start-over",
        "A lost or old index counts from where it is, under the same name: older copies win (#3876, PR #6605; "
        "syncthing-android #175).",
        (
            edit(
                "sync/founding.py",
                "    incarnation = world.clock.wall_ns() // 1_000_000_000\n",
                "    incarnation = 1\n",
            ),
            edit(
                "sync/life.py",
                "        if not together:\n            writer.new_incarnation(max(writer.incarnation + 1, now))\n",
                "",
            ),
        ),
        (f"{DURABLE}::test_an_index_put_back_publishes_under_a_new_name_before_it_meets_anyone",),
    ),
    Mutant(
        "backup-put-back-derives-deletions",
        "A folder is put back from a backup, and what was made since is taken for deleted (the other way round: "
        "syncthing-android #175, 2026).",
        (
            edit(
                "sync/observer.py",
                "        self._derive_removals = derive_removals\n",
                "        self._derive_removals = True\n",
            ),
        ),
        (f"{DURABLE}::test_a_folder_put_back_from_a_backup_takes_nothing_missing_for_deleted",),
    ),
    Mutant(
        "own-events-from-nowhere-unnoticed",
        "Peers know counters of ours that we never issued, and nobody wonders: the same counter is given out twice "
        "(#3876).",
        (
            edit(
                "index/writer.py",
                "                if replica == own and counter > state.issued:\n"
                "                    state.rolled_back = True\n",
                "",
            ),
        ),
        (f"{INDEX}::test_unknown_own_events_show_a_rollback",),
    ),
    Mutant(
        "bytes-served-unverified",
        "What is read to serve a peer is not hashed again: rot and torn writes spread (#2414, #8560).",
        (
            edit(
                "workspace/chunker.py",
                "    return count == len(out) and digest(algorithm, out) == expected",
                "    return count == len(out)",
            ),
        ),
        (f"{STORIES}::test_a_file_torn_without_a_trace_is_read_again_when_a_peer_asks_for_it",),
    ),
)
