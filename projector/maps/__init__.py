"""Trainable cloud halves (torch). A map turns received latents into the target model's cache."""
