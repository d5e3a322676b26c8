"""Fixed limits of messages, records and caches. Configurable limits have their defaults in `flink_job.config`."""

KIB = 1024
MIB = 1024 * KIB

#: Room in a Kafka record for all but its value: key, headers, batch header, the fields of a dead letter.
KAFKA_FRAMING_BYTES = 64 * KIB
#: A larger message between tasks could not become a Java array.
MAX_MESSAGE_BYTES = 1024 * MIB
#: A batch of more bytes than this holds one request only: 64 requests of 16 MiB would take 1 GiB, twice.
MAX_BATCH_BYTES = 16 * MIB
#: A frame of answers that grows beyond this is sent on.
ANSWER_FRAME_BYTES = 4 * MIB
#: Smaller values are copied out of a frame, because a view would keep the whole frame in memory.
FRAME_VIEW_FROM_BYTES = 64 * KIB

#: numpy and ONNX Runtime use tensors on such a boundary in place.
TENSOR_ALIGNMENT_BYTES = 16
#: Axes of a tensor in numpy.
MAX_RANK = 64
#: Bytes of a tensor in numpy.
MAX_TENSOR_BYTES = 2**63 - 1

#: UTF-8 bytes of a request's id.
MAX_ID_BYTES = 1024
#: Characters of a failure's message.
MAX_FAILURE_LENGTH = 2000
#: Largest priority, as the least urgent.
MAX_PRIORITY = 2**31 - 1
#: Latest deadline, in Unix milliseconds: exact as a float.
MAX_DEADLINE_MS = 2**53

#: Shards of one request; beyond it they get more rows, since a window costs per shard.
MAX_SHARDS = 1024
#: Entries of a cache by signature; models with dynamic shapes make any number of signatures.
CACHED_SIGNATURES = 4096
#: Sizes of protobuf fields whose encoding is kept.
CACHED_VARINTS = 4096
#: Defects of a task that wait for the log.
MAX_PENDING_DEFECTS = 16
