"""Ways to reach other devices: TCP streams, multicast discovery, addresses and redial timing.

An edge: imports trio, sockets, zeroconf, `p2psync.ports` and `p2psync.errors`; no other edge, no composition room.
"""
