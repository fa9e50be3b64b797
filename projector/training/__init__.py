"""Paired caches of two models, and maps trained on them."""
