"""Transformers models on local disks: their folders, read with care."""
