"""`python -m bench.plot build/bench.json docs/pictures`: what a run measured of growth, as pictures.

Both axes are logarithmic, a factor of ten is as long on both: what is linear goes up as the dotted lines do, and
what does not depend on the number lies flat.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_DECADE, _LEFT, _TOP, _RIGHT, _BOTTOM = 84, 64, 34, 100, 44
_STYLE = """\
text { font: 12px ui-sans-serif, system-ui, "DejaVu Sans", sans-serif; fill: #1f2328 }
.title { font-weight: 600 } .middle { text-anchor: middle } .end { text-anchor: end }
.page { fill: #ffffff; stroke: #d0d7de }
path { fill: none; stroke-width: 2 }
.grid { stroke: #d8dee4; stroke-width: 1 } .linear { stroke: #8c959f; stroke-width: 1; stroke-dasharray: 2 4 }
.s0 { stroke: #0969da } .s1 { stroke: #1a7f37 } .s2 { stroke: #bc4c00 } .s3 { stroke: #8250df }
.s4 { stroke: #cf222e } .s5 { stroke: #6e7781 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .page { fill: #0d1117; stroke: #30363d } .grid { stroke: #262c36 }
  .s0 { stroke: #4493f8 } .s1 { stroke: #3fb950 } .s2 { stroke: #f0883e } .s3 { stroke: #ab7df8 }
  .s4 { stroke: #f85149 } .s5 { stroke: #9198a1 }
}"""

Series = dict[str, dict[float, float]]
"""Seconds by number, by what was done."""


class Plot(NamedTuple):
    """A picture: of so many of what, and what takes how long."""

    title: str
    across: str
    series: Series


def plots(run: dict[str, Any]) -> dict[str, Plot]:
    """What there is to draw of a run, by the file's name."""
    files: Series = {}
    for case in run["cases"]:
        if case["section"] == "growth":
            verb = case["name"].partition(" ")[0]
            files.setdefault(verb, {})[case["amount"]] = case["contenders"][0]["seconds"]
    volumes: Series = {}
    for call in run["calls"]:
        about, _, number = call["section"].partition(", ")
        if about == "driver" and number.endswith(" volumes known"):
            known = float(number.partition(" ")[0].replace(",", ""))
            volumes.setdefault(call["name"], {})[known] = call["p50_ms"]["ours"] / 1000
    found = {
        "growth-files.svg": Plot("Files: time of all, by the sidecar", "files", files),
        "growth-volumes.svg": Plot("Volumes: time of one call, by the driver", "volumes known", volumes),
    }
    return {name: plot for name, plot in found.items() if plot.series}


def drawn(plot: Plot) -> str:
    """The picture as SVG."""
    numbers = [number for points in plot.series.values() for number in points]
    seconds = [taken for points in plot.series.values() for taken in points.values()]
    x0, x1 = math.floor(math.log10(min(numbers))), math.ceil(math.log10(max(numbers)))
    y0, y1 = math.floor(math.log10(min(seconds))), math.ceil(math.log10(max(seconds)))
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    width, height = _LEFT + (x1 - x0) * _DECADE + _RIGHT, _TOP + (y1 - y0) * _DECADE + _BOTTOM

    def at(number: float, taken: float) -> tuple[float, float]:
        across, up = math.log10(number) - x0, math.log10(taken) - y0
        return round(_LEFT + across * _DECADE, 1), round(_TOP + (y1 - y0 - up) * _DECADE, 1)

    def lines() -> Iterator[str]:
        yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">'
        yield f"<title>{plot.title}</title>\n<style>\n{_STYLE}\n</style>"
        yield f'<rect class="page" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>'
        yield f'<text class="title" x="{_LEFT}" y="21">{plot.title}</text>'
        for power in range(x0, x1 + 1):
            x, bottom = at(10.0**power, 10.0**y0)
            yield f'<path class="grid" d="M{x} {_TOP}V{bottom}"/>'
            yield f'<text class="middle" x="{x}" y="{bottom + 16}">{10**power:,}</text>'
        for power in range(y0, y1 + 1):
            left, y = at(10.0**x0, 10.0**power)
            yield f'<path class="grid" d="M{left} {y}H{width - _RIGHT}"/>'
            yield f'<text class="end" x="{left - 6}" y="{y + 4}">{_duration(power)}</text>'
        yield f'<text class="middle" x="{(_LEFT + width - _RIGHT) / 2}" y="{height - 9}">{plot.across}</text>'
        for power in range(y0, y1):  # what is linear
            steps = min(x1 - x0, y1 - power)
            (xa, ya), (xb, yb) = at(10.0**x0, 10.0**power), at(10.0 ** (x0 + steps), 10.0 ** (power + steps))
            yield f'<path class="linear" d="M{xa} {ya}L{xb} {yb}"/>'
        yield from _curves()
        yield "</svg>\n"

    def _curves() -> Iterator[str]:
        ends = sorted((at(*max(points.items()))[1], what) for what, points in plot.series.items())
        label_y = -math.inf
        for number, (y, what) in enumerate(ends):
            points = [at(*point) for point in sorted(plot.series[what].items())]
            steps = "L".join(f"{x} {y}" for x, y in points)
            yield f'<path class="s{number % 6}" d="M{steps}"/>'
            label_y = max(y + 4, label_y + 14)
            yield f'<text x="{points[-1][0] + 8}" y="{label_y}">{what}</text>'

    return "\n".join(lines())


def _duration(power: int) -> str:
    if power >= 0:
        return f"{10**power:,} s"
    return f"{10 ** (power + 3):,} ms" if power >= -3 else f"{10 ** (power + 6):,} µs"


def main() -> None:
    """Draw the run that the first argument names into the directory that is the second."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    for name, plot in plots(json.loads(source.read_text())).items():
        (target / name).write_text(drawn(plot))
        print(f"written: {target / name}")


if __name__ == "__main__":
    main()
