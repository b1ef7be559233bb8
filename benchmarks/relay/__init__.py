"""The relay at its limits, each figure beside the same stack serving a bare handler."""
