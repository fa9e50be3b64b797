"""Updates in two slots: verified, unpacked beside what runs, judged, and left again if they fail.

The calls, in order: `open_update` of the projector's bundles verifies the file, `install.install`
unpacks its parts and makes a slot of them, `boot` switches to it, counts its starts, and judges it
by `health`. `from_service` fetches files that the service offers, `waiting` installs them as root,
and `told` reads how that went.
"""
