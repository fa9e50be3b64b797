"""Versions of bundles: judged, offered to a share, compared, retired."""
