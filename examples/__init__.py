"""Examples: each runs by one command and is tested."""
