"""Sets of photos with classes: opening, loading, augmenting."""
