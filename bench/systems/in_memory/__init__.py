"""Reference systems without a broker: the attainable limits."""
