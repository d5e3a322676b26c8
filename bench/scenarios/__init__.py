"""What is measured: each scenario runs every system in turn, and gives back all that it saw."""
