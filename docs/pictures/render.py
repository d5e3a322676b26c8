"""Draws the pictures of the documentation: `python docs/pictures/render.py`.

Each `NAME.dot` becomes `NAME.svg`, with the colours of `style.css` in place of Graphviz' own, so that a picture follows
the reader's light or dark mode. The SVG carries a hash of its sources; `tests/docs` compares it. Needs npm.
"""

import hashlib
import re
import subprocess
from pathlib import Path

FOLDER = Path(__file__).parent
RENDERER = "@hpcc-js/wasm-graphviz-cli@1.11.2"


def source_hash(source: Path) -> str:
    """Identify everything that a picture is made of."""
    parts = (source.read_bytes(), (FOLDER / "style.css").read_bytes(), RENDERER.encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def finish(svg: str, source: Path) -> str:
    """Replace fixed colours by the style sheet, and add the title and the hash of the sources."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<polygon[^>]*fill=\"white\"[^>]*stroke=\"(none|transparent)\"[^>]*/>\n?", "", svg, count=1)
    svg = re.sub(r"<title>[^<]*</title>\n?", "", svg)
    svg = re.sub(r' (fill|stroke|font-family)="[^"]*"', "", svg)
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)
    # Graphviz measures Helvetica; wider fonts of other systems need the room that smaller letters leave.
    svg = re.sub(r'font-size="([\d.]+)"', lambda size: f'font-size="{float(size[1]) - 2.5:g}"', svg)
    title = source.read_text().splitlines()[0].removeprefix("//").strip()
    style = (FOLDER / "style.css").read_text()
    head = f"<title>{title}</title>\n<desc>sources: {source_hash(source)}</desc>\n<style>\n{style}</style>\n"
    return re.sub(r"(<svg[^>]*>\n?)", lambda found: found[1] + head, svg, count=1)


def main() -> None:
    """Draw all pictures."""
    for source in sorted(FOLDER.glob("*.dot")):
        command = ["npx", "--yes", "--package", RENDERER, "wasm-graphviz-cli", "-T", "svg", "-K", "dot", str(source)]
        drawn = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        source.with_suffix(".svg").write_text(finish(drawn, source))


if __name__ == "__main__":
    main()
