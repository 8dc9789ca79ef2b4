"""docs/concepts.svg: a group of real weights and the levels that they are rounded to; docs/generate.py writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

import quantkit
from quantkit.tensors.rounding import round_to_nearest

MODEL = Path(__file__).resolve().parent.parent / "golden" / "model"
WEIGHT = "model.layers.2.mlp.up_proj.weight"
BITS, GROUP = 3, 32
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 330, 64, 96, 44, 262
STYLE = """
text{font:13px system-ui,-apple-system,"Segoe UI",sans-serif;fill:#52514e}
.title{font-size:15px;font-weight:600;fill:#0b0b0b}
.code{font-size:12px;fill:#2264b8}
.level{stroke:#d5d4cc}.move{stroke:#b8480f;stroke-width:1.5}
.stored{fill:#2264b8}.weight{fill:#fff;stroke:#b8480f;stroke-width:1.8}
@media(prefers-color-scheme:dark){text{fill:#c3c2b7}.title{fill:#fff}.code{fill:#6ba6ee}.level{stroke:#44443f}
.move{stroke:#f0905e}.stored{fill:#6ba6ee}.weight{fill:#0d0d0d;stroke:#f0905e}}
"""


def picture() -> str:
    """The picture as SVG, the same on every machine."""
    row = quantkit.open_checkpoint(MODEL).weights[WEIGHT].read()[:1, :GROUP].astype(np.float32)
    tensor = round_to_nearest(row, quantkit.AffineGroups(bits=BITS, group_size=GROUP))
    scale = float(tensor.scale[0, 0])
    levels = [(code - 2 ** (BITS - 1)) * scale for code in range(2**BITS)]
    inside = "".join(_marks(row[0].tolist(), tensor.codes[0].tolist(), levels, scale))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    return f"{head}<title>{GROUP} weights and {2**BITS} levels</title><style>{STYLE}</style>{inside}</svg>\n"


def _marks(weights: list[float], codes: list[int], levels: list[float], scale: float) -> Iterator[str]:
    most = max(map(abs, [*weights, *levels]))

    def high(value: float) -> float:
        return (TOP + BOTTOM) / 2 - value / most * (BOTTOM - TOP) / 2

    yield f'<text x="0" y="18" class="title">{GROUP} weights of the golden model, rounded to {2**BITS} levels</text>'
    yield f'<text x="0" y="{TOP + 2}">value</text>'
    yield f'<text x="{WIDTH - RIGHT + 14}" y="{TOP - 12}" class="code">code</text>'
    for code, level in enumerate(levels):
        y = high(level)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="level"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{level:+.3f}</text>'
        yield f'<text x="{WIDTH - RIGHT + 26}" y="{y + 4:.1f}" class="code">{code}</text>'
    step = (WIDTH - RIGHT - LEFT - 24) / (len(weights) - 1)
    for place, (weight, code) in enumerate(zip(weights, codes, strict=True)):
        x, here, there = LEFT + 12 + place * step, high(weight), high(levels[code])
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{here:.1f}" y2="{there:.1f}" class="move"/>'
        yield f'<circle cx="{x:.1f}" cy="{there:.1f}" r="4.5" class="stored"/>'
        yield f'<circle cx="{x:.1f}" cy="{here:.1f}" r="3.6" class="weight"/>'
        yield f'<text x="{x:.1f}" y="{BOTTOM + 26}" text-anchor="middle" class="code">{code}</text>'
    yield f'<text x="{LEFT - 8}" y="{BOTTOM + 26}" text-anchor="end">codes</text>'
    bits = BITS * len(weights)
    yield (
        f'<text x="0" y="{HEIGHT - 10}">Stored: {len(weights)} codes of {BITS} bits and one scale of 16 bits, '
        f"{scale:.4f}: {bits + 16} bits for {16 * len(weights)}. weight = scale x (code - {2 ** (BITS - 1)})</text>"
    )
