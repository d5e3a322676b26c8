"""How Hypothesis runs here."""

from hypothesis import settings

# On a busy machine an example takes as long as it takes; a hang ends by pytest's own time limit.
settings.register_profile("patient", deadline=None, print_blob=True)
settings.load_profile("patient")
