"""Build the HTML reports: pages, sections, charts."""
