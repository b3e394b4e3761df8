"""Inference: open a model with an engine, classify photos or extract features, and write the results."""
