"""Bugs of an account's folders: who comes in again, who stays, and what a relay can make an account believe."""

from __future__ import annotations

from tests.mutants.mutant import Mutant, edit

KEEPING = "tests/membership/test_keeping.py"
JOINING = "tests/sync/mailbox/test_joining.py"
NODES = "tests/relay/test_account_keeper.py"

MUTANTS = (
    Mutant(
        "unshared-and-back-in-a-minute",
        "A device that a person has removed from a folder is let in again because the account has it.",
        (edit("membership/keeping.py", "and not membership.was_removed(target):\n", "and True:\n"),),
        (f"{KEEPING}::test_who_was_removed_by_hand_is_not_let_in_again",),
    ),
    Mutant(
        "put-out-and-still-a-member",
        "A stolen laptop is put out of the account and keeps reading every folder.",
        (edit("membership/keeping.py", "if target not in chain.devices)", "if target == b'')"),),
        (f"{KEEPING}::test_who_is_put_out_of_the_account_goes",),
    ),
    Mutant(
        "a-relay-makes-up-a-folder",
        "A folder that a relay has founded, with this device as an owner, is offered like one of the account.",
        (edit("membership/keeping.py", "if inviter in trusted)", "if trusted)"),),
        (f"{KEEPING}::test_a_folder_of_strangers_has_no_voucher",),
    ),
    Mutant(
        "waiting-for-a-piece-of-paper",
        "The recovery key counts as a member who is away: a mailbox for absent members is full for ever.",
        (edit("sync/context.py", "device != self.device and device not in paper]", "device != self.device]"),),
        (f"{NODES}::test_nothing_is_left_for_a_key_on_paper_alone",),
    ),
    Mutant(
        "let-in-under-the-old-key",
        "The recovery key seals under an epoch that a removed member has the key of.",
        (edit("sync/mailbox/joining.py", "key = sealing_key(membership, ring)\n", "key = next(iter(ring), None)\n"),),
        (f"{JOINING}::test_nothing_is_sealed_under_a_stale_epoch",),
    ),
)
