"""Entropy coding: rANS, and many streams side by side."""
