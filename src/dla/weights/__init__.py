"""Resolve model names, download, read, check and load weights, and write model folders."""
