"""Versions of bundles: judge, offer to a share, compare, retire."""
