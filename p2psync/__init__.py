"""p2psync: peer-to-peer, end-to-end encrypted file synchronisation.

Pure rooms (`model`, `reconcile`, `crypto`, `membership`, `protocol`, `transfer`) decide; edges (`index`, `workspace`,
`net`) act; `sync` and `node` compose them; `cli` talks to a node through its control API.
"""

__version__ = "0.1.0"
