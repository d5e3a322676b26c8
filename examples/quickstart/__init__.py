"""The smallest repository that can be served: one model of 1 KB that names colours."""
