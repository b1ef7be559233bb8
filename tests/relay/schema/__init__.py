"""What the API document says and what the relay does, compared by schemathesis on generated requests."""
