"""Figures about the whole system over the full test split. Nothing imports this package."""
