"""The command `anabranch`, also as `python -m anabranch`: names the extra to install if a package is missing."""

import signal
import sys

_SERVER_PYTHONS = ((3, 11), (3, 12))
#: Packages that the client does not need, and `tomllib`, which Python 3.10 does not have.
_EXTRAS = dict.fromkeys(
    ("apache_beam", "onnx", "onnxruntime", "psutil", "pyflink", "rich", "tomllib", "typer"), "server"
)
_EXTRAS["magika"] = "demo"
_EXTRAS["opentelemetry"] = "tracing"


def main() -> None:
    """Run the command line; a missing extra is one line on stderr and exit code 1."""
    try:
        # Ctrl-C during the imports ends the process without a traceback.
        handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            from anabranch.cli import main as run  # noqa: PLC0415
        finally:
            signal.signal(signal.SIGINT, handler)
        run()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        sys.exit(f"anabranch: the package {package!r} is not installed: {_remedy(_EXTRAS[package])}")


def _remedy(extra: str) -> str:
    install = f"pip install 'anabranch[{extra}]'"
    if sys.version_info[:2] in _SERVER_PYTHONS:
        return f"run {install}"
    found = ".".join(map(str, sys.version_info[:2]))
    return f"the server runs on Python 3.11 and 3.12, and this is {found}: run {install} with one of those"


if __name__ == "__main__":
    main()
