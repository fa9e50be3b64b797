"""The device's identity: its key, its certificate, the roots that it trusts; enrolment and renewal.

The library `cryptography` is imported only when an identity is used, so a device without one starts
without it.
"""
