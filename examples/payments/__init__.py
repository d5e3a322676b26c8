"""Payments in JSON, scored by a flow."""
