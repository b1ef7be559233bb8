"""The file system edge: scanner, watcher, chunker, stage, materialiser and history store, and their POSIX adapters.

Everything but the adapters (`posix`, `watcher`, `inotify`) is plain blocking code over `ports.Root`, so it runs the
same on a simulated disk. Callers run it in threads, in batches.
"""
