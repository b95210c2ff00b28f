"""Images in: where they come from (sources), how they become tensors (augmentation), in which order (loader)."""
