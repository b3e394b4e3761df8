"""What runs a network: uint8 batches in, arrays out."""
