"""Metrics for Prometheus, and the dashboard and the alerts that read them."""
