"""A folder's mailbox: what members leave, sealed, at a relay for members who are away."""
