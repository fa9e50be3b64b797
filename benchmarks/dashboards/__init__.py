"""Grafana's dashboards as code; `python -m benchmarks.dashboards` writes them."""
