"""The doctor: what will run on this machine with these settings, and what to do about the rest."""
