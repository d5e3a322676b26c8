"""Large records and frames in shared memory."""
