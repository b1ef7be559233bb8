"""The nouns of synchronisation: identifiers, paths, version vectors, manifests, records, the Merkle summary, ignores.

Pure: imports the standard library's data tools, `msgspec`, `blake3` and `pathspec`; no I/O, no time, no randomness.
Everything decoded here from foreign bytes is validated completely before it is returned.
"""
