"""A client in JavaScript, written from bridge.proto alone, and the Python that it needs."""
