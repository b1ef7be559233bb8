"""The relay's metadata: one schema and transactions over SQLite or PostgreSQL."""
