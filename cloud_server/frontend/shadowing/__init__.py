"""Shadowing: of a sampled share of frames the picture too, to measure what the map loses."""
