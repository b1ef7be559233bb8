"""`python -m p2psync.cli` is the command `p2psync`."""

from p2psync.cli.main import main

main()
