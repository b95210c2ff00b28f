"""Other people's formats, both ways: published I-JEPA checkpoints and Hugging Face directories."""
