"""The daemon: what a running device is made of besides the synchronizer: its home, settings, logs and supervision.

Composition: may import every room but `p2psync.cli`.
"""
