"""Records in shared memory."""
