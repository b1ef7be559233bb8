"""The planted bugs, by what they endanger."""

from tests.mutants.catalogue import account, agreement, disk, journal, keeping, sealing, trust

MUTANTS = (
    *disk.MUTANTS,
    *journal.MUTANTS,
    *agreement.MUTANTS,
    *trust.MUTANTS,
    *sealing.MUTANTS,
    *account.MUTANTS,
    *keeping.MUTANTS,
)
