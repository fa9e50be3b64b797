"""Admission: fair turns, quotas and memory bounds."""
