"""Frames up, answers down: dial, negotiate, connection, request, delivery, scenes."""
