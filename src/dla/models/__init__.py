"""The networks: torch alone, no photos, no weights."""
