"""Photos: bytes in, pixels out."""
