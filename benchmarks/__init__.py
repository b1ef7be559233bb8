"""What the product costs, measured beside its peers on the same work; run as `python -m benchmarks`."""
