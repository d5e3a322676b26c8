"""rapidocr as a chain: its three models, each between steps of its own code, as one model that reads pictures."""
