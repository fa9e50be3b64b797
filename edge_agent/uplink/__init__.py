"""Frames up, answers down: session, connection, delivery."""
