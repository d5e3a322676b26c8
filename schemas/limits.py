"""Fixed limits; `flink_job.config` has configurable ones."""

KIB = 1024
MIB = 1024 * KIB

#: A task holds eight.
KAFKA_FETCH_BYTES = 8 * MIB
#: Unless configured.
DEFAULT_MESSAGE_BYTES = 16 * MIB
#: Of a partition.
PRODUCE_BATCH_BYTES = 256 * KIB
#: For key, headers and dead letter fields.
KAFKA_FRAMING_BYTES = 64 * KIB
#: Must fit a Java array.
MAX_MESSAGE_BYTES = 1024 * MIB
#: A request of more bytes runs alone.
MAX_BATCH_BYTES = 16 * MIB
ANSWER_FRAME_BYTES = 4 * MIB
#: Fits the processor's caches.
REQUEST_FRAME_RECORDS = 256
REQUEST_FRAME_BYTES = MIB
#: A view keeps its frame alive.
FRAME_VIEW_FROM_BYTES = 64 * KIB
#: In a window.
MAX_KEPT_ORIGINAL_BYTES = 16 * KIB

#: Of the copies of models on a machine, unless configured.
MODEL_CACHE_BYTES = 32 * 1024 * MIB
FILE_CHUNK_BYTES = MIB

TENSOR_ALIGNMENT_BYTES = 16
#: Limits of numpy.
MAX_RANK = 64
MAX_TENSOR_BYTES = 2**63 - 1

#: Python handles each element.
MAX_REQUEST_ROWS = 1 << 20
MAX_BYTES_ELEMENTS = 1 << 17
MAX_TYPED_ELEMENTS = 1 << 20

MAX_ID_BYTES = 1024
#: Remembered by a task.
MAX_REPLY_TOPICS = 1024
MAX_FAILURE_LENGTH = 2000
MAX_PRIORITY = 2**31 - 1
#: Exact as a float.
MAX_DEADLINE_MS = 2**53

#: A year.
MAX_WAIT_MS = 365 * 24 * 3_600_000
MAX_RUN_MS = 24 * 3_600_000

#: Per request.
MAX_SHARDS = 1024
CACHED_SIGNATURES = 4096
CACHED_VARINTS = 4096
#: Of requests.
CACHED_HEADS = 1024
CACHED_HEADS_OF_A_SIZE = 4
MAX_CACHED_HEAD_BYTES = 4096
#: Of a task.
MAX_CACHED_TEMPLATE_BYTES = 4 * MIB
MAX_REMEMBERED_CRASHES = 1024
#: Per registry.
MAX_REMEMBERED_REFUSALS = 1024
#: Of nested messages, in Confluent's framing.
MAX_MESSAGE_INDEXES = 16
#: Per task, until logged.
MAX_PENDING_DEFECTS = 16
