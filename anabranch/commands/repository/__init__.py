"""Commands on a repository of models."""
