"""Settings of Hypothesis."""

from hypothesis import settings

# Examples take long on a busy machine; pytest's time limit ends a hang.
settings.register_profile("patient", deadline=None, print_blob=True)
settings.load_profile("patient")
