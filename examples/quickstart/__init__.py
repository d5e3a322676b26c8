"""A model repository of one 1 KB model, which names colours."""
