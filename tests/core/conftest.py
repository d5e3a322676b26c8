"""Settings of Hypothesis."""

from hypothesis import settings

# No deadline per example on a busy machine: pytest has a time limit of its own.
settings.register_profile("patient", deadline=None, print_blob=True)
settings.load_profile("patient")
