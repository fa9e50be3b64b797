"""Faults injected into a real service under load; `make test-faults` injects thousands."""
