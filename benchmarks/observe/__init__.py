"""Measures what people watch the service with."""
