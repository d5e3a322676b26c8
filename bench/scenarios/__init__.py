"""What is measured: each scenario runs every subject in turn, and gives back all that it saw."""
