"""Bundles: files, digests, signatures and certificates."""
