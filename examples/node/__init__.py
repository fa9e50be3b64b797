"""A client in JavaScript, written from bridge.proto alone, and what it needs of Python."""
