"""Atomic file writing, the cache, file locks and option files."""
