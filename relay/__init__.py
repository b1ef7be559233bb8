"""p2psync-relay: what peers alone cannot do, without reading what passes through. May import only pure rooms."""
