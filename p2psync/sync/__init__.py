"""The synchronizer: observe → exchange → plan → fetch → stage → apply → record → prove equal, one actor per folder.

Reaches disk, network, clock, randomness and database only through `p2psync.ports`; decisions come from the pure rooms.
"""
