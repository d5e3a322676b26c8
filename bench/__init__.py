"""Measures this project beside its peers, in turn, in one run: `python -m bench`."""
