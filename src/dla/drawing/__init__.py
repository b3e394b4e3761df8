"""Draw shapes as SVG and PNG, and draw networks."""
