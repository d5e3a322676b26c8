"""What a team would write without us: each a process of its own, on the same topics and the same wire."""
