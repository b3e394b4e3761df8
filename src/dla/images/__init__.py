"""Photos: the one decoder, the one preprocessing, class names."""
