"""The commands of `cloud-server`, one file each; `add` gives the command line its subparser."""
