"""`dla train`: a recipe and a set of photos become a model folder."""
