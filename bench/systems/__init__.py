"""This project's job and its peers, each in its own process."""
