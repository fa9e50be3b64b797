"""The commands of `projector`, one file each."""
