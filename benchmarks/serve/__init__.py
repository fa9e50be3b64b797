"""A running service under load: simulated devices, their ledger, the figures and the report."""
