"""Weights: the model folder, foreign files, the hub; everything loads strictly."""
