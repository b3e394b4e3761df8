"""The version, as pip and `dla --version` show it."""

__version__ = "0.1.0"
