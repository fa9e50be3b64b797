"""The live page: what the front end remembers for it, its views, its files."""
