"""The Flink job: configuration, model repository, Kafka, topology."""
