"""A chain of rapidocr's three models that reads text in pictures."""
