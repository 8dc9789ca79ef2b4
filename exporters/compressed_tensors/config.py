"""The `quantization_config` object of compressed-tensors: which module is quantized how.

    {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
     "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, ...}, ...}},
     "ignore": ["lm_head"], ...}

A group whose name is "ternary_" and a number has codes 1, 2 and 3 of 2 bits alone, which stand for -1, 0 and 1. Names
of groups are free: to other loaders it is a group of 2 bits.

A target is a class ("Linear"), the exact name of a module, or "re:" and a regular expression that the start of the
name must match. Where several match, an exact name wins over an expression, and an expression over a class; what
`ignore` matches stays dense. Source: package compressed-tensors 0.20.0, `quantization/quant_config.py`,
`quant_scheme.py`, `quant_args.py`, `utils/match.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quantkit.errors import BadConfig, UnsupportedSpec
from quantkit.models import spec as model_names
from quantkit.tensors.scheme import MAX_GROUP_SIZE, PER_ROW
from quantkit.tensors.schemes.affine_groups import AffineGroups

METHOD = "compressed-tensors"
FORMAT = "pack-quantized"
LAYOUT_VERSION = "0.20.0"
"""Version of the package whose layout this is; loaders ignore it, people read it."""

EMBEDDING, HEAD = (name.removesuffix(".weight") for name in (model_names.EMBEDDING, model_names.HEAD))
TERNARY_BITS = 2
TERNARY_NAME = re.compile(r"ternary_\d+", re.ASCII)
MAX_TARGETS = 10_000
MAX_EXPRESSIONS = 32
MAX_EXPRESSION_LENGTH = 200
MAX_REPETITIONS = 4
SAFE_EXPRESSION = re.compile(
    r"""\^?
    (?: (?: [\w.\-] | \\[.d\-] | \[[\w\-]+\] ) [*+?]?   # one character or class, perhaps repeated
      | \( (?:\?:)? [\w.\-|]+ \)                        # alternatives, never repeated
    )*
    \$?""",
    re.VERBOSE | re.ASCII,
)
"""Expressions of this shape, with few repetitions, match a name in polynomial time; any other is refused."""


def quantization_config(specs: Mapping[str, AffineGroups | None]) -> dict[str, Any]:
    """The object for a model whose modules (weight names without ".weight") have these specs; None = dense.

    Keys and values are those that the package writes. A single grid targets "Linear"; several name their modules.
    """
    grids: dict[AffineGroups, list[str]] = {}
    for module, spec in specs.items():
        if spec is not None:
            grids.setdefault(replace(spec, scale_dtype="float16"), []).append(module)
    groups = [
        _scheme(spec, _targets(modules) if len(grids) == 1 else modules)
        for spec, modules in grids.items()
    ]  # fmt: skip
    names = [f"{'ternary' if spec.ternary else 'group'}_{index}" for index, spec in enumerate(grids)]
    dense = [module for module, spec in specs.items() if spec is None and module not in (EMBEDDING, HEAD)]
    return {
        "config_groups": dict(zip(names, groups, strict=True)),
        "format": FORMAT,
        "global_compression_ratio": None,
        # A tied head has no weight of its own, but the module is there and would be taken for a quantized one.
        "ignore": dense if specs.get(HEAD) is not None else [*dense, HEAD],
        "kv_cache_scheme": None,
        "quant_method": METHOD,
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": LAYOUT_VERSION,
    }


def _targets(modules: Sequence[str]) -> list[str]:
    """Targets of the only group: embedding and head are other classes in some engines and go by name."""
    return ["Linear", *(module for module in modules if module in (EMBEDDING, HEAD))]


def _scheme(spec: AffineGroups, targets: Sequence[str]) -> dict[str, Any]:
    per_row = spec.group_size == PER_ROW
    return {
        "format": FORMAT,
        "input_activations": None,
        "output_activations": None,
        "targets": list(targets),
        "weights": {
            "dynamic": False,
            "group_size": None if per_row else spec.group_size,
            "num_bits": spec.bits,
            "strategy": "channel" if per_row else "group",
            "symmetric": spec.symmetric,
            "type": "int",
        },
    }


@dataclass(frozen=True, slots=True)
class Schemes:
    """The grids that a config prescribes, by target; `scale_dtype` is the file's affair and left at its default."""

    by_target: Mapping[str, AffineGroups]
    ignore: tuple[str, ...]

    def of(self, module: str) -> AffineGroups | None:
        """The grid of `module`, or None when it stays dense."""
        kind = "Embedding" if module == EMBEDDING else "Linear"
        if {module, kind} & set(self.ignore) or _matching(self.ignore, module):
            return None
        names = [module, *sorted(_matching(self.by_target, module)), kind]
        return next((self.by_target[name] for name in names if name in self.by_target), None)


def _matching(targets: Iterable[str], module: str) -> list[str]:
    """Those of `targets` that are expressions and match the start of `module`."""
    return [target for target in targets if target.startswith("re:") and re.match(target[len("re:") :], module)]


def read_schemes(config: Mapping[str, Any], where: str) -> Schemes:
    """Read a `quantization_config` object strictly; `where` begins every message.

    Raises:
        BadConfig: a value of the wrong type or outside its range.
        UnsupportedSpec: a scheme that is more than integer weights with group scales.
    """
    _refuse_foreign(config, where)
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise BadConfig(f"{where}: config_groups must be an object with at least one group")
    by_target: dict[str, AffineGroups] = {}
    for name, group in groups.items():
        place = f"{where}: {name[:80]}"
        if not isinstance(group, Mapping):
            raise UnsupportedSpec(f"{place} is not spelled out as an object, but {str(group)[:80]!r}")
        spec = _read_group(group, place)
        if TERNARY_NAME.fullmatch(name):
            if spec.bits != TERNARY_BITS or not spec.symmetric:
                raise BadConfig(
                    f"{place}: what is named ternary has symmetric codes of {TERNARY_BITS} bits, not {spec}"
                )
            spec = replace(spec, ternary=True)
        by_target |= dict.fromkeys(_read_targets(group.get("targets"), f"{place}: targets"), spec)
    return Schemes(by_target, tuple(_read_targets(config.get("ignore") or [], f"{where}: ignore")))


def _refuse_foreign(config: Mapping[str, Any], where: str) -> None:
    """Refuse what changes the model beyond its weights' grids, or lays them out otherwise."""
    only = {"quant_method": METHOD, "format": FORMAT, "quantization_status": "compressed"}
    for key, expected in only.items():
        if config.get(key) != expected:
            raise UnsupportedSpec(f"{where}: {key} {str(config.get(key))[:80]!r} is not supported; only {expected!r}")
    sparsity = config.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("format") == "dense":
        sparsity = None
    for key, value in {
        "kv_cache_scheme": config.get("kv_cache_scheme"),
        "transform_config": config.get("transform_config"),
        "sparsity_config": sparsity,
    }.items():
        if value:
            raise UnsupportedSpec(f"{where}: {key} is not supported; only quantized weights are")


def _read_group(group: Mapping[str, Any], where: str) -> AffineGroups:
    for key in ("input_activations", "output_activations"):
        if group.get(key):
            raise UnsupportedSpec(f"{where}: {key} are quantized; only quantized weights are supported")
    if group.get("format") not in (None, FORMAT):
        raise UnsupportedSpec(f"{where}: format {str(group['format'])[:80]!r} is not supported; only {FORMAT!r}")
    weights = group.get("weights")
    if not isinstance(weights, Mapping):
        raise BadConfig(f"{where}: weights must be an object")
    return _read_weights(weights, f"{where}: weights")


def _read_weights(weights: Mapping[str, Any], where: str) -> AffineGroups:
    allowed: Mapping[str, tuple[Any, ...]] = {
        "type": ("int",),
        "dynamic": (False,),
        "strategy": ("group", "channel", None),
        "block_structure": (None,),
        "actorder": (None, False, "weight", "static"),
    }
    defaults = {"type": "int", "dynamic": False}
    for key, values in allowed.items():
        value = weights.get(key, defaults.get(key))
        if not any(value is choice or (isinstance(value, str) and value == choice) for choice in values):
            raise UnsupportedSpec(f"{where}: {key} {str(value)[:80]!r} is not supported; only {values[0]!r}")
    symmetric = weights.get("symmetric", True)
    if not isinstance(symmetric, bool):
        raise BadConfig(f"{where}: symmetric must be true or false, is {str(symmetric)[:80]!r}")
    bits = weights.get("num_bits", 8)
    if type(bits) is not int or not 2 <= bits <= 8:
        raise UnsupportedSpec(f"{where}: num_bits {str(bits)[:80]!r} is not supported; only 2 to 8")
    return AffineGroups(bits=bits, group_size=_read_group_size(weights, where), symmetric=symmetric)


def _read_group_size(weights: Mapping[str, Any], where: str) -> int:
    """Groups when it is positive, one per row for strategy "channel"; neither is one scale per tensor: refused."""
    size, strategy = weights.get("group_size"), weights.get("strategy")
    if type(size) is int and 1 <= size <= MAX_GROUP_SIZE and strategy in ("group", None):
        return size
    if size == PER_ROW and strategy in ("channel", None):
        return PER_ROW
    if size is None and strategy == "channel":
        return PER_ROW
    raise UnsupportedSpec(f"{where}: strategy {strategy!r} with group_size {str(size)[:80]} is not supported")


def _read_targets(value: object, where: str) -> list[str]:
    if not isinstance(value, list) or len(value) > MAX_TARGETS or not all(isinstance(item, str) for item in value):
        raise BadConfig(f"{where} must be a list of at most {MAX_TARGETS} strings")
    expressions = [target[len("re:") :] for target in value if target.startswith("re:")]
    if len(expressions) > MAX_EXPRESSIONS:
        raise UnsupportedSpec(f"{where}: {len(expressions)} expressions; at most {MAX_EXPRESSIONS} are evaluated")
    for expression in expressions:
        _check_expression(expression, where)
    return value


def _check_expression(expression: str, where: str) -> None:
    repetitions = sum(map(expression.count, "*+?")) - expression.count("(?:")
    simple = len(expression) <= MAX_EXPRESSION_LENGTH and repetitions <= MAX_REPETITIONS
    try:
        if simple and SAFE_EXPRESSION.fullmatch(expression) and re.compile(expression):
            return
    except re.error:
        pass
    raise UnsupportedSpec(
        f"{where}: the expression {expression[:80]!r} is not of the simple kind that is evaluated",
        hint=f"characters, classes, (a|b) and at most {MAX_REPETITIONS} repetitions of single characters",
    )
