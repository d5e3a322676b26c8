"""The demo: streams files through Magika's model on Kafka and Flink, and checks every answer."""
