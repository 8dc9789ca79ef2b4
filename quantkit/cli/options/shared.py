"""Options that several verbs share, declared once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.cli.completion import in_lower_case, one_of, plugins

if TYPE_CHECKING:
    from quantkit import Recipe as Rules
    from quantkit import Scheme

METHODS = "rtn (round to nearest), gptq or awq (calibrated), ternary (taken over, else calibrated), exact (taken over)."

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Tensors = Annotated[bool, typer.Option("--tensors", help="List every weight.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes and no progress; warnings and errors stay.")]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace what quantkit wrote there, at the very end, or unfinished work of another run."
    ),
]


def named(out: Path) -> Path:
    """`out`; raises `BadOption` where an option stands in its place."""
    if str(out).startswith("-"):
        from quantkit.errors import BadOption

        raise BadOption(
            f"--out needs a name, and {str(out)[:80]!r} stands there", hint=f"--out ./{out}, if that is meant"
        )
    return out


Out = Annotated[
    Path,
    typer.Option("--out", "-o", callback=named, help="Where to write: a new name, or an empty folder."),
]
Arch = Annotated[
    str,
    typer.Option(
        "--arch",
        autocompletion=one_of("native", "llama"),
        callback=in_lower_case,
        help="native: keep the family's own architecture. llama: fold its scalars into a plain Llama.",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="Engine whose layout is meant, where a container has several (marlin: cpm.cu or ist).",
        show_default="the container's first",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, help="Worker threads; the output does not depend on it.", show_default="all cores"
    ),
]
Attention = Annotated[
    str | None,
    typer.Option(
        "--attention",
        autocompletion=one_of("dense", "sparse"),
        callback=in_lower_case,
        help="dense, or sparse as the model's sparse_config says (docs/sparse.md).",
        show_default="as the artifact attends by itself",
    ),
]
Variant = Annotated[
    str | None,
    typer.Option(
        "--variant",
        autocompletion=one_of("minicpm4.1", "minicpm4", "cpm.cu"),
        callback=in_lower_case,
        help="Of sparse attention, as which published code: minicpm4.1, minicpm4 or cpm.cu.",
        show_default="minicpm4.1",
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        autocompletion=plugins("runtimes", "auto"),
        help="auto, or the name of an engine (see `quantkit formats`).",
    ),
]
Method = Annotated[
    str | None,
    typer.Option("--method", autocompletion=plugins("methods"), help=METHODS, show_default=False),
]
Recipe = Annotated[
    Path | None,
    typer.Option("--recipe", help="TOML file of exceptions by role or name (docs/recipes.md).", show_default=False),
]
EmbeddingBits = Annotated[
    int | None,
    typer.Option(
        "--embedding-bits",
        min=2,
        max=8,
        help="Quantize embedding and head as well, in so many bits.",
        show_default="they keep their type",
    ),
]
Bits = Annotated[int | None, typer.Option("--bits", min=2, max=8, help="Bits per code.", show_default="4, ternary 2")]
GroupSize = Annotated[
    int | None,
    typer.Option(
        "--group-size", help="Input columns per scale; -1 = one scale per row.", show_default="128, ternary -1"
    ),
]
Symmetric = Annotated[
    bool | None,
    typer.Option("--sym/--asym", help="Fixed zero point in the middle, or one per group.", show_default="sym"),
]
Levels = Annotated[
    int | None,
    typer.Option("--levels", min=3, max=4, help="ternary: 3, or 4 for -1, 0, 1, 2 (GGUF's Q2_0).", show_default="3"),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="ternary: refuse a ternary model of which some weights are not; else those stay dense."
    ),
]
TargetBits = Annotated[
    float | None,
    typer.Option(
        "--target-bpw",
        help="Choose types by measured loss so that all files have at most so many bits per weight.",
        show_default=False,
    ),
]
TargetBytes = Annotated[
    str | None,
    typer.Option("--target-size", help="The same for a size, such as 300MB or 1.5GiB.", show_default=False),
]
Samples = Annotated[int, typer.Option("--samples", min=1, help="Calibration sequences.")]
Length = Annotated[int, typer.Option("--length", min=2, help="Tokens per calibration sequence.")]

FOUR_LEVEL_GROUP = 64
"""Columns of a block of GGUF's Q2_0, which is what four levels are for."""


def chosen_scheme(
    method: str,
    *,
    bits: int | None,
    group_size: int | None,
    symmetric: bool | None,
    scale_dtype: str | None = None,
    levels: int | None,
) -> Scheme:
    """The method's own scheme with what the user has set.

    Raises:
        BadOption: an unknown method, or `levels` for one that is not ternary.
        UnsupportedSpec: settings that no scheme has.
    """
    from quantkit import default_scheme
    from quantkit.errors import BadOption

    scheme = default_scheme(method)
    given: dict[str, Any] = {
        "bits": bits,
        "group_size": group_size,
        "symmetric": symmetric,
        "scale_dtype": scale_dtype,
    }
    if levels is not None and not getattr(scheme, "ternary", False):
        raise BadOption(f"--levels is for --method ternary, not {method}", hint="choose --bits")
    if levels == 4:
        given |= {"ternary": False, "group_size": group_size or FOUR_LEVEL_GROUP}
    return scheme.with_settings(**{name: value for name, value in given.items() if value is not None})


def chosen_recipe(recipe: Path | None, embedding_bits: int | None) -> Rules:
    """The rules of a file, if any, and behind them one for embedding and head, if these are to be quantized.

    Raises:
        What `Recipe.read` raises.
    """
    from quantkit import Recipe as Rules

    rules = Rules.read(recipe) if recipe is not None else Rules()
    return rules if embedding_bits is None else rules.with_outer(embedding_bits)


def mixture_lines(mixture: Mapping[str, Any]) -> Iterator[str]:
    """What a report tells of a mixture that was chosen: counts of types, and what they come to."""
    counts = ", ".join(f"{count} x {kind}" for kind, count in mixture["counts"].items())
    yield f"chosen by measured loss: {counts}"
    of = f" as {mixture['container']}" if "container" in mixture else ""
    yield (
        f"{mixture['planned_size']:,} bytes{of}, {mixture['bits_per_weight']:.3f} bits per weight; predicted KL "
        f"{mixture['predicted_kl']:.1e}"
    )
