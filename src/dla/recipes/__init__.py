"""Training recipes: YAML files and their one schema."""
