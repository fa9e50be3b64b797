"""The doctor: checks whether the service will run on this machine with these settings."""
