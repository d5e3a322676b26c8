"""Tasks of exported models."""

from enum import StrEnum


class Task(StrEnum):
    """A task, in the words of Hugging Face."""

    TEXT_CLASSIFICATION = "text-classification"
    FEATURE_EXTRACTION = "feature-extraction"
    IMAGE_CLASSIFICATION = "image-classification"
