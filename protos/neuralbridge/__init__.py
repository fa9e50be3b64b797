"""The directory of the wire package; knows nothing itself."""
