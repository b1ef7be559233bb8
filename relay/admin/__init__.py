"""The operator's commands: what the API never offers."""
