"""The service: a model behind HTTP."""
