"""How good frozen features are: one contract (features.py), one file for each evaluator, one comparison (suite.py)."""
