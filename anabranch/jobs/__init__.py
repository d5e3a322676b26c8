"""Jobs of a cluster, from outside."""
