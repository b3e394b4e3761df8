"""Labelled photos: sources, splits, checks."""
