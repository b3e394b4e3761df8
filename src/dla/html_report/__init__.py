"""Pages of the HTML reports, and what stands on them."""
