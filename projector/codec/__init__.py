"""The edge half in NumPy: it selects tokens, codes them and estimates the risk."""
