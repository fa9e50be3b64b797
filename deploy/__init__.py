"""Everything that starts the halves together: the demo, its report, images and units.

Knows every package; no package knows it.
"""
