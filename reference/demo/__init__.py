"""The demo: a cloud server and an edge agent, each its own process, and a report."""
