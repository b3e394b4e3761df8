"""Train a network from a recipe; the result is a model folder."""
