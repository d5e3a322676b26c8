"""The wire: Open Inference Protocol messages, internal records, the error tree. Imports nothing else of ours."""
