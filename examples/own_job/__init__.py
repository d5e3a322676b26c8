"""A PyFlink job of one's own with a model in it."""
