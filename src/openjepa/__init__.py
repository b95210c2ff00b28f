"""openjepa."""
