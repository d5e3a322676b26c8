"""Back-ends that run models."""
