"""`make demo`: every file of a folder through Magika's own model, in Kafka and Flink, with every answer checked."""
