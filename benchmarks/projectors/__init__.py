"""`make bench-projectors`: every family of maps on every edge model."""
