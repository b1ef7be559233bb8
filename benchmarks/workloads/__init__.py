"""What is done to the tools, by idea; each module lists its sessions, in the order of the table's rows."""

from __future__ import annotations

from benchmarks.stage import Session
from benchmarks.workloads import files, mailbox, scale, several, wan

SESSIONS: tuple[Session, ...] = (*files.SESSIONS, *wan.SESSIONS, *scale.SESSIONS, *several.SESSIONS, *mailbox.SESSIONS)
