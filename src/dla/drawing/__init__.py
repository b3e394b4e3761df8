"""SVG and PNG drawings, and the drawing of a network."""
