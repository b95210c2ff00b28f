"""What the logged numbers of a run say about its representation: pure functions of the rows."""
