"""Figures computed from recorded runs; nothing here waits, sends or writes."""
