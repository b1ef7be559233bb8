"""Keys and proofs: device identities, keys at rest, the handshake, sealed frames and pairing by a short code.

Pure: keys, random bytes and times come in as arguments. Content and record hashes are in `p2psync.model.hashing`.
"""
