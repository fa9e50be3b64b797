"""Long memory on a real pair, measured."""
