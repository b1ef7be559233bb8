"""Bugs of accounts: a relay that is believed, a secret that leaves, a request that is done twice."""

from __future__ import annotations

from tests.mutants.mutant import Mutant, edit

HTTP = "tests/net/test_http.py"
CALL = "tests/net/test_relay_call.py"
CLIENT = "tests/relay/test_client.py"
NODES = "tests/relay/test_accounts_of_nodes.py"
FILES = "tests/node/test_account_store.py"

MUTANTS = (
    Mutant(
        "any-certificate-is-the-relays",
        "The fingerprint in a relay's URL is read and never compared: whoever answers gets requests and tokens.",
        (edit("net/http.py", "if not is_pinned(tls.peer_certificate(), self._fingerprint):\n", "if False:\n"),),
        (f"{HTTP}::test_somebody_else_hears_nothing",),
    ),
    Mutant(
        "a-relay-names-the-length-of-its-answer",
        "An answer is read to its end, however long it is: a relay fills a node's memory.",
        (
            edit(
                "net/http.py",
                "                if end > limit:\n                    break\n",
                "                if end > 1000 * limit:\n                    break\n",
            ),
        ),
        (f"{HTTP}::test_endless_answers_are_cut_off",),
    ),
    Mutant(
        "everything-is-sent-again",
        "A sign-up whose answer was lost is sent again: two mails, two codes, and the first one typed is wrong.",
        (edit("net/relay_call.py", "(sent and not request.repeatable)", "(sent and False)"),),
        (f"{CLIENT}::test_what_must_not_be_repeated_is_not",),
    ),
    Mutant(
        "everybody-renews-the-session",
        "Twenty requests with a stale token refresh it twenty times, and a refresh token used twice ends the session.",
        (
            edit(
                "net/relay_call.py",
                "if session is not None and session.access_expires - _EARLY_S > now and session.access_token != spent:",
                "if session is not None and session.access_expires - _EARLY_S > now and spent is not None:",
            ),
        ),
        (f"{CLIENT}::test_a_session_is_renewed_once_for_all",),
    ),
    Mutant(
        "one-comer-at-a-time",
        "Two devices that come by one recovery key end each other's sessions, and one of them is told to log in again.",
        (edit("node/account.py", "client.accounts.log_in_as_one_of_many(email", "client.accounts.log_in(email"),),
        ("tests/relay/test_account_keeper.py::test_devices_that_come_by_one_recovery_key_at_once_all_come_in",),
    ),
    Mutant(
        "a-wrong-clock-locks-out",
        "A refusal because of the time is taken for a lost session: a device whose clock is wrong never gets in.",
        (edit("net/relay_call.py", "        way.offset_s = offset\n", "        way.offset_s = 0\n"),),
        (f"{CLIENT}::test_a_wrong_clock_is_corrected",),
    ),
    Mutant(
        "a-session-of-any-account",
        "A relay opens a session of another account than the one asked for, and the node works on in that one.",
        (edit("net/relay_call.py", "if session.account_id != self.account_id:\n", "if not session.account_id:\n"),),
        (f"{CALL}::test_a_session_of_another_account_is_none",),
    ),
    Mutant(
        "a-relay-may-forget-devices",
        "A relay that was set back shows a shorter chain, and devices that were put out are back (rollback).",
        (
            edit(
                "node/account.py",
                "            if not links and self.chain is not None and stored.confirmed:\n",
                "            if links is None and self.chain is not None and stored.confirmed:\n",
            ),
        ),
        (f"{NODES}::test_a_relay_that_was_set_back",),
    ),
    Mutant(
        "a-recovery-key-vouches-for-any-account",
        "Who logs in by the recovery key takes whatever chain holds that key's public half: a relay can make one up "
        "and gets every folder key (unauthenticated public keys: Sync, Tresorit; eprint 2024/1616).",
        (
            edit(
                "node/account_joining.py",
                "    began = first.action.random == founding_random(key, first.author)\n",
                "    began = bool(founding_random(key, first.author))\n",
            ),
        ),
        (f"{NODES}::test_a_relay_that_makes_up_an_account_around_a_recovery_key",),
    ),
    Mutant(
        "an-invitation-names-no-place",
        "What the inviting device said of its chain is not compared with what the relay shows the new one.",
        (edit("node/account_store.py", "if stored.head and (len", "if not stored.head and (len"),),
        (f"{NODES}::test_an_invited_device_knows_its_account_from_a_made_up_one",),
    ),
    Mutant(
        "paired-is-in-the-account",
        "Every paired device comes into the account, also a friend's.",
        (
            edit(
                "node/device_operations.py",
                "self.pairing.open(self.account_invitation() if account else None)",
                "self.pairing.open(self.account_invitation())",
            ),
        ),
        (f"{NODES}::test_nobody_joins_an_account_unasked",),
    ),
    Mutant(
        "another-link-at-the-same-place",
        "A link whose answer was lost is signed anew at its place, and not sent again: a device forks its chain.",
        (
            edit(
                "node/account.py",
                "await self._change(chain.extend([chain.sign(keys or self._keys, action).encoded]))",
                "await self.client.accounts.append_link(chain.sign(keys or self._keys, action).encoded)",
            ),
        ),
        (f"{NODES}::test_the_same_link_is_sent_again",),
    ),
    Mutant(
        "the-chain-is-not-kept",
        "account.json says how many links the relay confirmed, and the links themselves are not written.",
        (edit("node/account_store.py", "if links is not None:\n", "if links == []:\n"),),
        (f"{FILES}::test_the_chain_is_never_behind_what_the_relay_confirmed",),
    ),
)
