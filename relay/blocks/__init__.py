"""The block service: sealed chunks of folders, what refers to them, and what becomes of those nothing refers to."""
