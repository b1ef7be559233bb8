"""Bugs between the disk and what is believed about it: reading, recognising, replacing, removing."""

from __future__ import annotations

from tests.mutants.mutant import Mutant, edit

MATERIALISER = "tests/workspace/test_materialiser.py"
SCANNER = "tests/workspace/test_scanner.py"
DISKS = "tests/sync/test_disks.py"

MUTANTS = (
    Mutant(
        "overwrite-without-recheck",
        "What an exchange brings out is not compared with what was expected: a save of the last microsecond is taken "
        "for the old version (#2416, #3742: unscanned local edits overwritten without a conflict copy).",
        (
            edit(
                "workspace/materialiser.py",
                """\
        if not self._is(self._root.stat(temp), op.expect):
            return self._give_back(op, temp, new)
""",
                "",
            ),
        ),
        (f"{MATERIALISER}::test_an_edit_between_any_two_calls_survives",),
    ),
    Mutant(
        "remove-without-recheck",
        "A file is removed although it was written to after it was last seen (#2416 for deletions).",
        (
            edit(
                "workspace/materialiser.py",
                "op.expect is None or current.kind is Kind.DIRECTORY or not op.expect.matches(current):",
                "op.expect is None or current.kind is Kind.DIRECTORY:",
            ),
            edit("workspace/materialiser.py", "        if self._is(displaced.stat, expect):", "        if True:"),
        ),
        (f"{MATERIALISER}::test_remove",),
    ),
    Mutant(
        "replaced-file-not-kept",
        "The version that a remote one replaces is removed instead of moved to history (FIELD: what users ask back "
        "first after a bad sync).",
        (
            edit(
                "workspace/materialiser.py",
                "            displaced = self._mover.put_aside(temp, op.path, self._stamp, op.keep)\n",
                "            displaced = None\n            self._root.unlink(temp)\n",
            ),
        ),
        (f"{MATERIALISER}::test_replace_keeps_the_old_version_in_history",),
    ),
    Mutant(
        "rename-takes-a-used-name",
        "A rename to a name that should be free replaces what has come there meanwhile.",
        (
            edit(
                "workspace/displace.py",
                "self.root.rename(source, target, Rename.NOREPLACE)",
                "self.root.rename(source, target, Rename.REPLACE)",
            ),
        ),
        (f"{MATERIALISER}::test_move", f"{MATERIALISER}::test_a_taken_conflict_name_sends_the_old_version_to_history"),
    ),
    Mutant(
        "move-of-a-changed-file",
        "A rename found by content moves a file that a person has changed since (rename detection that trusts the "
        "database).",
        (
            edit(
                "workspace/materialiser.py",
                "        if current is None or not op.expect.matches(current):\n"
                "            return Changed(op.source, current)",
                "        if current is None:\n            return Changed(op.source, current)",
            ),
            edit("workspace/materialiser.py", "        if self._is(moved, op.expect):", "        if True:"),
        ),
        (f"{MATERIALISER}::test_move",),
    ),
    Mutant(
        "directory-delete-takes-an-unseen-child",
        "Deleting a directory deletes what is in it, seen or not (the reverse of #9371, where such directories were "
        "put back).",
        (
            edit(
                "workspace/materialiser.py",
                "            self._settle([path])\n        try:\n",
                "            self._settle([path])\n        try:\n"
                "            for name, _ in self._root.scan(path):\n"
                '                self._root.unlink(path + b"/" + name)\n',
            ),
        ),
        (f"{MATERIALISER}::test_remove",),
    ),
    Mutant(
        "executable-bit-lost",
        "Files arrive without their executable bit (Dropbox and Seafile clients on Linux did so for years).",
        (
            edit(
                "workspace/staging.py",
                "    return base | (base & 0o444) >> 2 if wanted & 0o100 else base & ~0o111",
                "    return base & ~0o111",
            ),
        ),
        (f"{MATERIALISER}::test_place_new_file",),
    ),
    Mutant(
        "symlinked-parent-followed",
        "Paths are resolved through symlinks, so whoever can write a link can write behind it (CVE-2017-1000420, "
        "#3801).",
        (
            edit(
                "workspace/beneath.py",
                "_RESOLVE_BENEATH_NO_SYMLINKS = 0x08 | 0x04",
                "_RESOLVE_BENEATH_NO_SYMLINKS = 0",
            ),
        ),
        ("tests/workspace/test_posix.py",),
    ),
    Mutant(
        "symlink-out-of-the-folder",
        "A symlink that leads out of the folder is made on every device, ready for the next writer to follow.",
        (
            edit(
                "reconcile/clash.py",
                "            depth -= 1\n            if depth < 0:\n                return True",
                "            depth -= 1",
            ),
        ),
        ("tests/reconcile/test_clash.py",),
    ),
    Mutant(
        "name-changed-to-nfc",
        "Names are read in composed form: a decomposed one is not found again, and of two that differ only so one is "
        "squashed (#430, #7674, #8128).",
        (
            edit(
                "workspace/posix.py",
                "                        result.append((os.fsencode(entry.name),"
                " to_stat(entry.stat(follow_symlinks=False))))",
                "                        import unicodedata\n\n"
                '                        text = os.fsencode(unicodedata.normalize("NFC", os.fsdecode(entry.name)))\n'
                "                        result.append((text, to_stat(entry.stat(follow_symlinks=False))))",
            ),
        ),
        ("tests/workspace/test_posix.py::test_names_that_differ_in_form_only_are_two",),
    ),
    Mutant(
        "case-twins-overwrite",
        "On a disk that folds case one name is taken for the other, and its content is published under both (#439, "
        "#1787, #7974; Unison before 1.9 “could have overwritten each other's contents”).",
        (
            edit(
                "sync/applier.py",
                "        if found is None and (capabilities.case_insensitive or capabilities.normalising):",
                "        if False:",
            ),
            edit(
                "workspace/scanner.py",
                "                looked[path] = stat_exact(self._root, path)",
                "                looked[path] = self._root.stat(path)",
            ),
        ),
        ("tests/sync/test_folding.py",),
    ),
    Mutant(
        "clash-held-for-ever",
        "A name that could not be shown beside another stays away when the other is gone (#439: a rename that changes "
        "case only deletes the file).",
        (edit("sync/applier.py", "        if free:\n", "        if False:\n"),),
        ("tests/sync/test_folding.py::test_what_was_held_appears_once_its_twin_is_gone",),
    ),
    Mutant(
        "unreadable-directory-is-empty",
        "A directory that cannot be listed counts as empty, so all in it as deleted (#762, #1496).",
        (
            edit(
                "workspace/scanner.py",
                "            self.batch.problems.append(ScanProblem.of(directory, error))\n            return\n"
                "        known =",
                "            self.batch.problems.append(ScanProblem.of(directory, error))\n            listing = []\n"
                "        known =",
            ),
        ),
        (f"{SCANNER}::test_what_cannot_be_read_is_never_missing",),
    ),
    Mutant(
        "ignored-is-deleted",
        "What a new ignore pattern covers is published as deleted (a pattern added on one device emptied the others).",
        (
            edit(
                "workspace/scanner.py",
                "        self.batch.ignored.append(synced.path)",
                "        self.batch.findings.append(Finding(synced.path, None, synced, Why.MISSING))",
            ),
        ),
        (f"{SCANNER}::test_ignored_entries_are_forgotten_and_not_missing",),
    ),
    Mutant(
        "missing-marker-is-an-empty-folder",
        "A directory without the marker is taken for the folder with nothing in it (#762: unplugged drives became "
        "mass deletions).",
        (
            edit(
                "workspace/marker.py",
                "    if found is None:\n        return RootCheck(\n            RootState.MARKER_MISSING,",
                "    if found is None:\n        return RootCheck(\n            RootState.OK,",
            ),
        ),
        ("tests/workspace/test_marker.py",),
    ),
    Mutant(
        "root-not-checked-before-deletes",
        "The root is checked before a scan and not after it: a disk that goes away meanwhile is a mass deletion "
        "(#4345, #5207).",
        (
            edit(
                "sync/observer.py",
                "        if not (await context.world.offload.run(context.check_root)).ok:",
                "        if False:",
            ),
        ),
        (f"{DISKS}::test_a_disk_that_goes_away_under_a_scan_deletes_nothing",),
    ),
    Mutant(
        "no-stat-after-hash",
        "A file that changes while it is hashed is published as a mixture (#2414, #3442, #5649).",
        (
            edit(
                "workspace/chunker.py",
                "    if after != before:\n        raise _unsettled(path)\n",
                "",
            ),
        ),
        ("tests/workspace/test_chunker.py",),
    ),
    Mutant(
        "boundary-kept-whatever-follows",
        "An edit right behind a chunk leaves its end where it was, though the first byte that follows has a say in it: "
        "devices that read the file anew cut it elsewhere, and equal contents count as different.",
        (
            edit(
                "workspace/chunker.py",
                "                        reading.take_back()\n",
                "                        pass\n",
            ),
        ),
        ("tests/workspace/test_chunker.py",),
    ),
    Mutant(
        "hole-remembered-where-there-is-none",
        "Read again from an earlier place, a file is taken for the hole that was found farther on: zeros are published "
        "in the place of content.",
        (
            edit(
                "workspace/chunker.py",
                "        if not self._hole_from <= self.offset < self._data_from:\n",
                "        if not self.offset < self._data_from:\n",
            ),
        ),
        ("tests/workspace/test_chunker.py",),
    ),
    Mutant(
        "size-and-time-are-identity",
        "A file of the same size and time counts as the same file: swapped files and edits whose time was put back go "
        "unseen (rsync's quick check).",
        (
            edit(
                "model/entries.py",
                """\
        return (self.ino, self.size, self.mtime_ns, self.ctime_ns) == (
            stat.ino,
            stat.size,
            stat.mtime_ns,
            stat.ctime_ns,
        )""",
                "        return (self.size, self.mtime_ns) == (stat.size, stat.mtime_ns)",
            ),
        ),
        (f"{SCANNER}::test_another_file_of_the_same_size_and_time_is_a_change",),
    ),
    Mutant(
        "racy-file-not-hashed-again",
        "A change in the same tick as the last look is never found (racy git; Syncthing 1.19.2 and Unison 2.52.1 miss "
        "it).",
        (
            edit(
                "model/entries.py",
                "        return max(self.mtime_ns, self.ctime_ns) >= self.observed_ns - granularity_ns",
                "        return False",
            ),
        ),
        (f"{SCANNER}::test_a_racy_fingerprint_is_hashed_again",),
    ),
    Mutant(
        "lost-events-forgotten",
        "When the kernel's queue overflows nothing is looked at until the next periodic scan (inotify's Q_OVERFLOW "
        "dropped by watcher libraries).",
        (
            edit(
                "sync/hints.py",
                "            if hint.path is None or len(self._arrived) >= MAX_PATHS:",
                "            if hint.path is None:\n                return\n"
                "            if len(self._arrived) >= MAX_PATHS:",
            ),
        ),
        ("tests/sync/test_hints.py",),
    ),
    Mutant(
        "stale-scan-published",
        "What a scan read is published although a newer version was applied in between: the old content comes back as "
        "an edit.",
        (edit("sync/observer.py", "synced != finding.synced", "False"),),
        ("tests/sync/test_durability.py::test_what_a_scan_read_before_a_new_version_came_is_no_edit",),
    ),
    Mutant(
        "failed-commit-taken-for-none",
        "A commit that the disk reported as failed is durable all the same: the index knows of a removal, memory does "
        "not, and what the removed device writes is refused without a word to anybody.",
        (
            edit(
                "sync/folder.py",
                "            context.membership = await world.offload.run("
                "lambda: founding.load_membership(context.index))\n",
                "",
            ),
        ),
        (f"{DISKS}::test_a_removal_whose_commit_was_said_to_have_failed_is_believed_once_it_is_found",),
    ),
)
