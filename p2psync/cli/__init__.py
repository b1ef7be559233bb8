"""What a person types: commands that talk to the running node, or to its home while none runs.

May import `node` only (operations, views, home, settings). Heavy imports stay inside the commands: each starts fast.
"""
