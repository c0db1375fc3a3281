"""Makes the SVG pictures beside this file of their TOML sources: `python docs/pictures/draw.py`.

A picture has a background of its own, since a page that shows it as an image may be of either colour whatever the
reader's system prefers; where the system prefers a dark one, the picture is dark.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

HERE = Path(__file__).parent
LINE = 18

MARKER = """\
<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0 8 4 0 8z"/></marker>"""

STYLE = """\
text { font: 13px ui-sans-serif, system-ui, "DejaVu Sans", sans-serif; fill: #1f2328; text-anchor: middle }
.head { font-weight: 600; font-size: 14px }
.small { fill: #57606a; font-size: 12px }
.page { fill: #ffffff; stroke: #d0d7de }
.frame { fill: none; stroke: #8c959f; stroke-dasharray: 5 4 }
.box { fill: #f6f8fa; stroke: #8c959f }
.ours { fill: #ddf4ff; stroke: #0969da }
.storage { fill: #dafbe1; stroke: #1a7f37 }
.arrow { fill: none; stroke: #57606a; stroke-width: 1.6; marker-end: url(#tip) }
.mount { stroke: #0969da }
#tip path { fill: #57606a }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .small { fill: #9198a1 }
  .page { fill: #0d1117; stroke: #30363d }
  .box { fill: #161b22; stroke: #6e7681 }
  .ours { fill: #0c2d6b; stroke: #4493f8 }
  .storage { fill: #033a16; stroke: #3fb950 }
  .arrow { stroke: #9198a1 }
  .mount { stroke: #4493f8 }
  #tip path { fill: #9198a1 }
}"""


def drawn(picture: dict[str, Any]) -> str:
    """The SVG of a source."""
    width, height = picture["width"], picture["height"]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
        f"<title>{escape(picture['title'])}</title>",
        f"<style>\n{STYLE}\n</style>",
        MARKER,
        _rectangle([0.5, 0.5], [width - 1, height - 1], "page"),
    ]
    for frame in picture.get("frames", []):
        lines.append(_rectangle(frame["at"], frame["size"], "frame"))
        x, y = frame["at"]
        lines.append(_text([x + frame["size"][0] / 2, y + 22], frame["label"], "small"))
    for arrow in picture.get("arrows", []):
        points = " ".join(f"{x},{y}" for x, y in arrow["points"])
        lines.append(f'<polyline class="arrow {arrow.get("kind", "")}" points="{points}"/>')
        if "text" in arrow:
            lines.append(_text(arrow["text_at"], arrow["text"], "small"))
    for box in picture.get("boxes", []):
        lines.append(_rectangle(box["at"], box["size"], f"box {box.get('kind', '')}"))
        lines += _centred(box["at"], box["size"], box["text"])
    for note in picture.get("notes", []):
        x, y = note["at"]
        lines += [_text([x, y + LINE * number], text, "small") for number, text in enumerate(note["text"])]
    return "\n".join([*lines, "</svg>", ""])


def _rectangle(at: list[float], size: list[float], kind: str) -> str:
    (x, y), (width, height) = at, size
    return f'<rect class="{kind.strip()}" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>'


def _text(at: list[float], text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{at[0]:g}" y="{at[1]:g}">{escape(text)}</text>'


def _centred(at: list[float], size: list[float], texts: list[str]) -> list[str]:
    x = at[0] + size[0] / 2
    first = at[1] + size[1] / 2 - LINE * (len(texts) - 1) / 2 + 5
    return [
        _text([x, first + LINE * number], text, "small" if number else "head") for number, text in enumerate(texts)
    ]


def main() -> None:
    for source in sorted(HERE.glob("*.toml")):
        source.with_suffix(".svg").write_text(drawn(tomllib.loads(source.read_text())))


if __name__ == "__main__":
    main()
