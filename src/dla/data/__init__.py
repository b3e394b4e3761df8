"""Read, split, check and cache labelled photos."""
