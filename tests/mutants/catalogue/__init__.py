"""The planted bugs, by what they endanger."""

from tests.mutants.catalogue import agreement, disk, journal, trust

MUTANTS = (*disk.MUTANTS, *journal.MUTANTS, *agreement.MUTANTS, *trust.MUTANTS)
