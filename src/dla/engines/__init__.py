"""The inference engines, one module per runtime, and the operation graph that they are built from."""
