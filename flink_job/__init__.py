"""Where things are wired together: configuration, Kafka, the model repository, the topology."""
