"""Decisions: what a local observation means, what the disk must become, in which order, and when to stop and ask.

Pure: three trees in (disk, records, synced), values out. Nothing here does I/O or knows the time.
"""
