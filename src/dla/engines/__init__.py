"""One file for each runtime that a network can run on."""
