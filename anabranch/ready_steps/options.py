"""Options of the ready steps of chains: tables in place of Python functions in a `[chain]`."""

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

#: Tensor of a run's inputs: the place of each row in the batch.
ROWS = "rows"
MASK = "attention_mask"

Count: TypeAlias = Annotated[int, Meta(ge=1)]
Share: TypeAlias = Annotated[float, Meta(gt=0)]


class _Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step"):
    """Options of any ready step."""


class TokenizeStep(_Options, frozen=True, kw_only=True, tag="tokenize"):
    """Makes token ids of texts, all rows of a batch in one call.

    Attributes:
        input: Texts, BYTES.
        file: Tokenizer, beside `model.toml`.
        max_length: Longer rows are truncated; 0 for the limit in the file.
        pad_id: Filling of ids, unless `[padding]` has one.
        lowercase: Lowers the texts first.
    """

    input: str = "text"
    file: str = "tokenizer.json"
    max_length: Annotated[int, Meta(ge=0)] = 0
    pad_id: Annotated[int, Meta(ge=0)] = 0
    lowercase: bool = False


class PictureStep(_Options, frozen=True, kw_only=True, tag="picture"):
    """Decodes pictures, resizes, crops, rescales and normalises them, in this order.

    Attributes:
        input: Encoded pictures, BYTES; base64 is accepted.
        resize: Shortest edge, or height and width; empty for none.
        resample: Filter of the resizing.
        crop: Height and width of the centre, filled up with 0; empty for none.
        channels: Order of the channels.
        rescale: Factor of each value.
        mean: Of each channel, subtracted after rescaling; empty for none.
        std: Of each channel; empty for none.
        layout: Order of the axes.
        max_pixels: Larger pictures are refused before they are decoded.
    """

    input: str = "picture"
    resize: Annotated[tuple[Count, ...], Meta(max_length=2)] = ()
    resample: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear"
    crop: Annotated[tuple[Count, ...], Meta(max_length=2)] = ()
    channels: Literal["RGB", "BGR", "L"] = "RGB"
    rescale: Share = 1 / 255
    mean: tuple[float, ...] = ()
    std: tuple[Share, ...] = ()
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    max_pixels: Count = 50_000_000

    def __post_init__(self) -> None:
        """Check what the types do not tell."""
        if len(self.crop) == 1:
            raise ValueError(f"crop is {list(self.crop)}, expected height and width")
        channels = 1 if self.channels == "L" else 3
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, channels):
                raise ValueError(f"{name} has {len(values)} values, expected {channels}")


class FramesStep(_Options, frozen=True, kw_only=True, tag="frames"):
    """Cuts a signal into frames, which become the rows of a run.

    Attributes:
        input: Samples, FP32 or INT16; INT16 is scaled to 1.
        size: Samples of a frame.
        hop: Samples from a frame to the next; 0 for `size`.
        pad: Fills the last frame up with 0; otherwise the rest is dropped.
        window: Factor of each sample.
    """

    input: str = "audio"
    size: Count
    hop: Annotated[int, Meta(ge=0)] = 0
    pad: bool = True
    window: Literal["none", "hann"] = "none"


class PoolStep(_Options, frozen=True, kw_only=True, tag="pool"):
    """Makes one vector of each row, as the output `embedding`.

    Attributes:
        tensor: Output of the model; empty for the only fitting one.
        mode: `mean` and `max` leave padding out; `first` takes the first token; `none` takes a vector as it is.
        normalize: Scales each vector to length 1.
    """

    tensor: str = ""
    mode: Literal["mean", "max", "first", "none"] = "mean"
    normalize: bool = True


class LabelsStep(_Options, frozen=True, kw_only=True, tag="labels"):
    """Makes scores of logits: the outputs `label`, its `score`, and all `scores`.

    Attributes:
        tensor: Output of the model; empty for the only fitting one.
        labels: Names, or a file with `id2label`, beside `model.toml`.
        function: `sigmoid` for labels that do not exclude each other.
    """

    tensor: str = ""
    labels: tuple[str, ...] | str = "config.json"
    function: Literal["softmax", "sigmoid", "none"] = "softmax"


BeforeStep: TypeAlias = TokenizeStep | PictureStep | FramesStep
AfterStep: TypeAlias = PoolStep | LabelsStep
ReadyStep: TypeAlias = BeforeStep | AfterStep

#: Options that name files, by step, with their defaults.
FILES = {"tokenize": {"file": "tokenizer.json"}, "labels": {"labels": "config.json"}}
#: Outputs of steps behind a model, with their datatypes.
MADE: dict[type, dict[str, str]] = {
    PoolStep: {"embedding": "FP32"},
    LabelsStep: {"label": "BYTES", "score": "FP32", "scores": "FP32"},
}


def name_of(step: ReadyStep | type[ReadyStep]) -> str:
    """Return the name by which a configuration chooses a step."""
    return str(step.__struct_config__.tag)


def files_of(step: msgspec.Struct) -> tuple[str, ...]:
    """Return the files that a step reads."""
    if isinstance(step, TokenizeStep):
        return (step.file,)
    if isinstance(step, LabelsStep) and isinstance(step.labels, str):
        return (step.labels,)
    return ()


def keeps_rows(step: ReadyStep | None) -> bool:
    """Tell if each row in gives one row out."""
    return not isinstance(step, FramesStep)
