"""The relay over HTTP: one table of routes, and what every request passes on its way to a handler."""
