"""A real broker and a real Flink cluster on this machine, for development, tests and the demo."""
