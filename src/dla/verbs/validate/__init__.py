"""`dla validate`: how good a classifier is on photos whose classes are known."""
