"""Files, the cache and locks: everything written to disk goes through here."""
