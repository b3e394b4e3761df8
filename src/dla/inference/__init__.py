"""From a photo to its record."""
