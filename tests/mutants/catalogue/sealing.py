"""Bugs of sealing: what a relay, a former member or a member with the key could make of what is stored."""

from __future__ import annotations

from tests.mutants.mutant import Mutant, edit

EPOCHS = "tests/membership/test_epochs.py"
GRANTS = "tests/membership/test_grants.py"
REMOVAL = "tests/membership/test_removal_of_a_reader.py"
SEAL = "tests/crypto/test_seal.py"

MUTANTS = (
    Mutant(
        "kind-not-authenticated",
        "A chunk of a file can be passed off as a manifest: its kind is not part of what is sealed "
        "(borg CVE-2016-10099, CVE-2023-36811).",
        (
            edit(
                "crypto/seal.py",
                'b"%b\\0%c%b%b%c%b" % (_CHUNK_LABEL, SUITE, key.folder, key.id, name.kind, identity)',
                'b"%b\\0%c%b%b%b" % (_CHUNK_LABEL, SUITE, key.folder, key.id, identity)',
            ),
        ),
        (f"{SEAL}::test_the_kind_is_authenticated_even_if_names_were_alike",),
    ),
    Mutant(
        "content-not-rechecked",
        "Whoever has the folder's key can put other content under a chunk's name: what comes out is not hashed again.",
        (
            edit(
                "crypto/seal.py",
                "    if not name.names(out[:length]):\n        raise AuthenticationError(FAILED)\n",
                "",
            ),
        ),
        (f"{SEAL}::test_other_content_sealed_in_due_form_is_refused",),
    ),
    Mutant(
        "changed-content-sealed",
        "A file that changes between hashing and sealing is sealed under the key of its former content: two plaintexts "
        "under one key and nonce (Nextcloud, eprint 2024/546).",
        (
            edit(
                "crypto/seal.py",
                "    if not name.names(out[CONTENT_AT : CONTENT_AT + len(content)]):",
                "    if False:",
            ),
        ),
        (f"{SEAL}::test_content_that_changed_since_it_was_named_is_not_sealed",),
    ),
    Mutant(
        "stale-epoch-unnoticed",
        "Sealing goes on under the key that a removed member has.",
        (
            edit(
                "membership/fold.py",
                "        stale = bool(revocations & ~node.past)\n",
                "        stale = False\n",
            ),
        ),
        (f"{EPOCHS}::test_who_loses_rights_makes_it_stale_until_the_next", f"{REMOVAL}"),
    ),
    Mutant(
        "epochs-jump",
        "An editor gives its epoch a number that nobody will reach, and seals for all from then on (fast-forward).",
        (
            edit(
                "membership/graph.py",
                "        self.starts = isinstance(link.action, Epoch) and link.action.number == epoch_before + 1\n",
                "        self.starts = isinstance(link.action, Epoch)\n",
            ),
        ),
        (f"{EPOCHS}::test_numbers_cannot_be_jumped_or_repeated",),
    ),
    Mutant(
        "granted-key-not-compared",
        "A reader takes whatever key it is granted, and seals to who granted it (MEGA, Nextcloud: keys nobody vouches "
        "for).",
        (
            edit(
                "membership/grants.py",
                "    if key.id != grant.key_id:\n        raise AuthenticationError(FAILED)\n",
                "",
            ),
        ),
        (f"{GRANTS}::test_a_grant_with_another_key_than_the_link_commits_to_is_refused",),
    ),
    Mutant(
        "sealing-key-not-bound",
        "A card's sealing key is not under its signature: who carries the card puts its own there (Sync, Tresorit).",
        (
            edit(
                "crypto/identity.py",
                "    return bytes((CARD_SUITE,)) + agreement_key + sealing_key\n",
                "    return bytes((CARD_SUITE,)) + agreement_key\n",
            ),
        ),
        (
            "tests/crypto/test_identity.py::test_a_foreign_key_cannot_be_claimed",
            f"{GRANTS}::test_a_forged_card_gets_no_key",
        ),
    ),
)
