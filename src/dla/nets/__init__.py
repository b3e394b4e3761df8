"""The networks: torch only; no files, no images, no YAML."""
