"""Where devices find each other: who is present, calls from one to another, and forwarding when all else failed."""
