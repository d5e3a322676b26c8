"""Reads pictures with the chain `ocr` of a running job: `python -m examples.ocr.read [--server HOST:PORT] PICTURE…`."""

import argparse

import cv2

from anabranch import Client


def main() -> None:
    """Print each line of text with its score."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", default="127.0.0.1:9092", help="a broker of the job")
    parser.add_argument("pictures", nargs="+")
    arguments = parser.parse_args()
    with Client(arguments.server) as client:
        for path in arguments.pictures:
            picture = cv2.imread(path)
            if picture is None:
                parser.error(f"cannot read {path} as a picture: name a PNG or JPEG file")
            answer = client.infer("ocr", {"picture": picture})
            for text, score in zip(answer["text"], answer["score"], strict=True):
                print(f"{score:.2f}  {text.decode()}")


if __name__ == "__main__":
    main()
