"""How good a map is, beside controls that it must beat."""
