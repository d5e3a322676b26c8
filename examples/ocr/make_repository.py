"""Makes a model repository of rapidocr: `python -m examples.ocr.make_repository FOLDER`.

The models come from the rapidocr package, and the characters for steps.py from its recogniser.
"""

import shutil
import sys
from importlib.resources import files
from pathlib import Path

import onnxruntime

_CHAIN = Path(__file__).parent / "repository" / "ocr"
_MODELS = {
    "detect.onnx": "PP-OCRv6_det_small.onnx",
    "orient.onnx": "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
    "recognise.onnx": "PP-OCRv6_rec_small.onnx",
}


def make_repository(folder: Path) -> None:
    """Add the chain `ocr` to a model repository."""
    chain = folder / "ocr"
    chain.mkdir(parents=True, exist_ok=True)
    for name in ("model.toml", "steps.py"):
        shutil.copyfile(_CHAIN / name, chain / name)
    for name, origin in _MODELS.items():
        (chain / name).write_bytes(files("rapidocr").joinpath("models", origin).read_bytes())
    recogniser = onnxruntime.InferenceSession(chain / "recognise.onnx", providers=["CPUExecutionProvider"])
    characters = recogniser.get_modelmeta().custom_metadata_map["character"].splitlines()
    (chain / "characters.txt").write_text("\n".join(characters), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("missing argument FOLDER: python -m examples.ocr.make_repository FOLDER")
    make_repository(Path(sys.argv[1]))
