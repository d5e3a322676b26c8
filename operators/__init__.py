"""The operators of the job: pure decisions in `core`, sessions in `backends`, thin Flink shells beside them."""
