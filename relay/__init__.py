"""The relay: what peers alone cannot do for each other, without ever holding a key that opens content or names.

Shares only the pure rooms of `p2psync`.
"""
