"""Who this device is: its key, its certificate, the roots that it trusts; enrolment and renewal.

The library `cryptography` is imported only where an identity is used: a device that speaks plain
text to a service of its own machine starts without it.
"""
