"""The meta and notification service: sealed entries of folders for members that are away, and the news of them."""
