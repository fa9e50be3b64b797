"""A selector of one's own, in a run of the device's agent: `python -m examples.selector`."""
