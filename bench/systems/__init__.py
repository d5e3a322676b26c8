"""This project's job and its peers, each in a process of its own, on the same topics and the same wire."""
