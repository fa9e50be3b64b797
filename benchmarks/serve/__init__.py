"""Benchmark of the service under load: simulated devices, their ledger, figures and report."""
