"""HTTP and gRPC door to a job: the Open Inference Protocol over the job's Kafka topics."""
