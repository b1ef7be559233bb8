"""Accounts: who may use the relay, with which devices, and how much of it."""
