"""How the page looks: by day and by night, on a phone and on a screen."""

from __future__ import annotations

from itertools import pairwise

LIGHT = {
    "page": "#f9f9f7", "card": "#ffffff", "ink": "#0b0b0b", "soft": "#52514e", "line": "#e1e0d9",
    "good": "#006300", "bad": "#c02f2f", "on": "#ffffff",
}  # fmt: skip
DARK = {
    "page": "#0d0d0d", "card": "#1a1a19", "ink": "#ffffff", "soft": "#c3c2b7", "line": "#33332f",
    "good": "#4cc04c", "bad": "#ff8080", "on": "#0d0d0d",
}  # fmt: skip
SERIES = (
    ("#66655f", "#a5a49c"), ("#2264b8", "#6ba6ee"), ("#b8480f", "#f0905e"), ("#0d7d55", "#35c796"),
    ("#5a45b8", "#a99ff2"), ("#8a6100", "#e0ab2e"), ("#b83a3a", "#f08c8c"), ("#a83a74", "#ea8fb9"),
    ("#3f7a1c", "#86c95e"),
)  # fmt: skip
"""By day and by night; the first is of all beyond the last. Dark enough by day for white figures in them."""
SHADES = ("#dbe8f8", "#b3d0f1", "#84b3e8", "#5593dc", "#2a70c4", "#0f4a91")
RULES = """
:root{color-scheme:light dark;%s}
@media(prefers-color-scheme:dark){:root{%s}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1140px;margin:0 auto;padding:20px 16px 48px}
h1{font-size:22px;line-height:1.25;margin:0 0 4px}
h2{font-size:16px;margin:0 0 2px}
p{margin:0 0 10px}
.soft,figcaption,summary{color:var(--soft)}
figcaption{font-size:13px;margin-bottom:8px}
.cards{display:grid;gap:14px;grid-template-columns:repeat(auto-fit,minmax(min(100%%,290px),1fr));align-items:start;
margin-top:14px}
.figures{columns:330px;column-gap:14px;margin-top:14px}
.card,figure{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px;margin:0;min-width:0}
figure{margin-bottom:14px;break-inside:avoid}
.name{overflow-wrap:anywhere;font-weight:600}
.verdict{font-weight:600}
.good{color:var(--good)}.bad{color:var(--bad)}
dl{display:grid;grid-template-columns:auto 1fr;gap:1px 14px;margin:8px 0}
dt{color:var(--soft)}dd{margin:0;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
ul{margin:6px 0 0;padding-left:18px;overflow-wrap:anywhere}
.chip{display:inline-block;min-width:20px;padding:0 5px;border-radius:10px;text-align:center;color:var(--on);
font-size:12px;line-height:20px;margin-right:6px}
svg{display:block;width:100%%;max-width:400px;height:auto;font:12px system-ui,-apple-system,"Segoe UI",sans-serif}
svg text{fill:var(--soft);font-variant-numeric:tabular-nums}
svg text.strong{fill:var(--ink);font-weight:600}
svg text.on{fill:var(--on);font-size:10.5px;font-weight:600}
svg .grid{stroke:var(--line)}
svg .stem{stroke:var(--mark);stroke-width:2}
svg .limit{stroke:var(--ink);stroke-width:2}
svg circle{fill:var(--mark);stroke:var(--card);stroke-width:1.5}
.chip{background:var(--mark)}
.legend{display:flex;flex-wrap:wrap;gap:2px 0;font-size:12px;color:var(--soft);margin-top:6px;align-items:center}
.legend>span{margin-right:12px;overflow-wrap:anywhere}
.shades{flex-wrap:nowrap;white-space:nowrap}
.shades>span{margin-right:8px}
.shades i+span{margin:0 0 0 7px}
.legend i{width:14px;height:10px;margin-right:1px}
details{margin-top:8px}
summary{cursor:pointer;font-size:13px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;margin-top:6px}
th,td{padding:2px 12px 2px 0;text-align:left;white-space:nowrap;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--soft)}
td.n,th.n{text-align:right}
"""


def style() -> str:
    """The style sheet."""
    shades = _shades()
    by_day, by_night = (
        "".join(f"--{name}:{value};" for name, value in theme.items())
        + "".join(f"--c{number}:{pair[night]};" for number, pair in enumerate(SERIES))
        + "".join(f"--s{number}:{value};" for number, value in enumerate(shades[::-1] if night else shades))
        for night, theme in enumerate((LIGHT, DARK))
    )
    marks = "".join(f".c{number}{{--mark:var(--c{number})}}" for number in range(len(SERIES)))
    numbers = range(len(shades))
    cells = "".join(f".s{number}{{fill:var(--s{number});background:var(--s{number})}}" for number in numbers)
    return RULES % (by_day, by_night) + marks + cells


def _shades() -> list[str]:
    """`SHADES`, with one between each two."""
    found = [SHADES[0]]
    for one, other in pairwise(SHADES):
        mixed = ((int(one[at : at + 2], 16) + int(other[at : at + 2], 16)) // 2 for at in (1, 3, 5))
        found += ["#" + "".join(f"{part:02x}" for part in mixed), other]
    return found
