"""Training runs as Python functions that return a full configuration."""
