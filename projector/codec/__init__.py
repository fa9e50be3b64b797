"""The edge half in NumPy: which tokens travel, how they are coded, how far to trust them."""
