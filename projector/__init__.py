"""Cache spaces and the maps between them.

Base modules (cache, vlm, select, encoder) describe and code one model's cache, and `configuration`
is how every program here is configured; serving modules (bundle, backends) load what training left.
Importing this package imports none of them.
"""
