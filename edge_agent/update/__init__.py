"""Updates in two slots: verified, unpacked beside what runs, judged, and left again if they fail.

The calls, in order: `open_update` verifies the file, `install.install` unpacks its parts
and makes a slot of them, `boot` switches to it, counts its starts, and judges it by `health`.
"""
