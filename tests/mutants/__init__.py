"""Planted bugs: each is one that a real synchronizer had or could have, and the tests must notice it."""
