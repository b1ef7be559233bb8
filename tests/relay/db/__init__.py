"""Tests of the relay's transactions and migrations."""
