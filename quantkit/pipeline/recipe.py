"""Recipes: which weight becomes what, as ordered rules. The first rule that matches a weight decides it.

    [[rule]]
    role = ["gate", "up"]         # q k v o gate up down embed lm_head: one of them, or a list
    match = "model.layers.0.*"    # shell pattern for the weight's name, with or without ".weight"
    bits = 8                      # and group_size, symmetric, scale_dtype, method
    keep = true                   # instead of these five: the weight stays as it is

A rule has `role`, `match` or both, and then both must hold. Settings that it leaves out, and weights that no rule
decides, are as the command line says. Embedding and head are quantized only when a rule names them (`role = "lm_head"`,
or a pattern that begins with lm_head or model.embed_tokens), and then by gptq in a calibrated run, else rounded to
nearest, unless the rule has a method. Norms are never quantized.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from quantkit import registry
from quantkit.errors import BadOption, MalformedFile, UnsupportedSpec, chosen
from quantkit.files.source_file import SourceFile
from quantkit.models.spec import EMBEDDING, HEAD, LINEAR_ROLES, ModelSpec, Role, TensorSlot
from quantkit.tensors.scheme import Scheme
from quantkit.tensors.schemes.affine_groups import AffineGroups

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BYTES = 1 << 16
MAX_LINE = 1_000
"""Characters: a key of ten thousand parts takes Python's reader a second."""
MAX_PATTERN = 200
OUTER = {Role.EMBED: EMBEDDING, Role.LM_HEAD: HEAD}
"""Matrices outside the blocks, by role; the embedding is also the head of a model whose embeddings are tied."""
ROLES = (*LINEAR_ROLES, *OUTER)
"""What a rule may name."""

OUTER_METHODS: Mapping[bool, str] = {False: "rtn", True: "gptq"}
"""What quantizes embedding and head where no rule says it, by whether the run is calibrated."""
SETTING_TYPES: Mapping[str, type] = {"bits": int, "group_size": int, "symmetric": bool, "scale_dtype": str}
KEYS = ("role", "match", "keep", "method", *SETTING_TYPES)


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a weight becomes: its scheme and the name of the method; no scheme = it stays as it is."""

    scheme: Scheme | None
    method: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule. roles: empty = any. settings: of the scheme, those that it changes. method: None = as elsewhere."""

    roles: tuple[Role, ...] = ()
    match: str | None = None
    keep: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    method: str | None = None

    def matches(self, slot: TensorSlot) -> bool:
        """Whether this rule is about the weight of `slot`; about embedding and head only if it names or keeps them."""
        if self.roles and slot.role not in self.roles:
            return False
        if slot.role in OUTER:
            module = OUTER[slot.role].removesuffix(".weight")
            named = slot.role in self.roles or (self.match or "").startswith(module)
            if not (named or self.keep):
                return False
        names = (slot.name, slot.name.removesuffix(".weight"))
        return self.match is None or any(fnmatchcase(name, self.match) for name in names)

    def to_json(self) -> dict[str, Any]:
        """The rule's keys and values as in a file."""
        return {
            **({"role": [role.value for role in self.roles]} if self.roles else {}),
            **({"match": self.match} if self.match is not None else {}),
            **({"keep": True} if self.keep else {}),
            **self.settings,
            **({"method": self.method} if self.method is not None else {}),
        }


@dataclass(frozen=True, slots=True)
class Recipe:
    """Ordered rules, none by default. where: what messages call it; equal rules are equal recipes."""

    rules: tuple[Rule, ...] = ()
    where: str = field(default="recipe", compare=False)

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a TOML file strictly.

        Raises:
            MalformedFile: not TOML.
            BadOption: a key, type or name that a rule does not have; says which rule.
            UnsupportedSpec: a grid that there is not.
            IncompleteCheckpoint, UnsafePath, ReadFailed, SourceChanged: see `SourceFile`.
        """
        data = SourceFile.open(path).read_all(MAX_BYTES)
        try:
            text = data.decode("utf-8")
            _check_lines(text, str(path))
            parsed = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise MalformedFile(f"{path}: not TOML: {reason}") from None
        _check_numbers(parsed, str(path))
        return cls.from_json(parsed, where=str(path))

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
        """Inverse of `to_json`, with the checks of `read`."""
        unknown = sorted(set(data) - {"rule"})
        rules = data.get("rule", [])
        if unknown or not isinstance(rules, list) or not all(isinstance(rule, Mapping) for rule in rules):
            problem = f"unknown key {unknown[0][:80]!r}" if unknown else "rule is not a list of tables"
            raise BadOption(f"{where}: {problem}", hint="a recipe is a list of tables that begin with [[rule]]")
        return cls(tuple(_rule(rule, f"{where}: rule {number}") for number, rule in enumerate(rules, 1)), where)

    def with_outer(self, bits: int) -> Recipe:
        """These rules and one more behind them: embedding and head in so many bits."""
        return Recipe((*self.rules, Rule(roles=tuple(OUTER), settings={"bits": bits})), self.where)

    def to_json(self) -> dict[str, Any]:
        """A JSON object of the same shape as the TOML file."""
        return {"rule": [rule.to_json() for rule in self.rules]}

    def assign(self, model: ModelSpec, default: Scheme, default_method: str) -> dict[str, Assignment]:
        """What every matrix of `model` becomes, by weight name in the order of the model.

        Raises:
            BadOption: a rule that decides no weight.
            UnsupportedSpec: groups that do not divide a weight's columns; names rule and weight.
        """
        slots = [slot for slot in model.slots() if slot.role in ROLES]
        deciding = {slot.name: next((n for n, rule in self._numbered() if rule.matches(slot)), None) for slot in slots}
        for number, rule in self._numbered():
            if number not in deciding.values():
                raise self._idle(number, rule, model, slots)
        return {slot.name: self._assignment(deciding[slot.name], slot, default, default_method) for slot in slots}

    def _numbered(self) -> Iterator[tuple[int, Rule]]:
        return enumerate(self.rules, 1)

    def _assignment(self, number: int | None, slot: TensorSlot, default: Scheme, default_method: str) -> Assignment:
        if number is None:
            return Assignment(None if slot.role in OUTER else default, default_method)
        rule, where = self.rules[number - 1], f"{self.where}: rule {number}"
        if rule.keep:
            return Assignment(None, default_method)
        try:
            scheme = default.with_settings(**rule.settings)
            scheme.groups(slot.shape[1], name=slot.name)
        except UnsupportedSpec as error:
            raise UnsupportedSpec(f"{where}: {error}", hint=error.hint) from None
        if slot.role not in OUTER:
            return Assignment(scheme, rule.method or default_method)
        if rule.method is not None:
            return Assignment(scheme, rule.method)
        calibrated = registry.method(default_method).needs_calibration
        return Assignment(scheme, OUTER_METHODS[calibrated])

    def _idle(self, number: int, rule: Rule, model: ModelSpec, slots: list[TensorSlot]) -> BadOption:
        if any(rule.matches(slot) for slot in slots):
            problem, hint = "the rules before it decide all of its weights", "the first rule that matches wins"
        elif Role.LM_HEAD in rule.roles and model.tie_word_embeddings:
            problem, hint = "this model's head is its embedding", f'name that: role = "{Role.EMBED.value}"'
        else:
            problem = "no linear layer of this model matches"
            hint = "`quantkit plan --tensors` lists the names; patterns match no norm, nor an unnamed embedding or head"
        return BadOption(f"{self.where}: rule {number} decides nothing: {problem}", hint=hint)


def _check_lines(text: str, where: str) -> None:
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > MAX_LINE:
            raise MalformedFile(f"{where}: line {number} has {len(line):,} characters; the limit is {MAX_LINE:,}")


def _check_numbers(value: object, where: str) -> None:
    """TOML's integers have 64 bits. Python's reader takes any, and then cannot spell those of many thousand bits."""
    level = [value]
    while level:
        for number in level:
            if isinstance(number, int) and not -(1 << 63) <= number < 1 << 63:
                raise MalformedFile(f"{where}: an integer of {number.bit_length():,} bits; TOML's have 64")
        parts = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list))]
        level = [item for part in parts for item in part]


def _rule(data: Mapping[str, Any], where: str) -> Rule:
    unknown = sorted(set(data) - set(KEYS))
    if unknown:
        raise BadOption(f"{where}: unknown key {unknown[0][:80]!r}", hint=f"keys: {', '.join(KEYS)}")
    for key, kind in {"match": str, "keep": bool, "method": str, **SETTING_TYPES}.items():
        if key in data and type(data[key]) is not kind:
            names = {int: "an integer", bool: "true or false", str: "a string"}
            raise BadOption(f"{where}: {key} must be {names[kind]}, is {str(data[key])[:80]!r}")
    rule = Rule(
        roles=_roles(data["role"], where) if "role" in data else (),
        match=data.get("match"),
        keep=data.get("keep", False),
        settings={key: data[key] for key in SETTING_TYPES if key in data},
        method=_method(data["method"], where) if "method" in data else None,
    )
    _check(rule, where)
    return rule


def _roles(value: object, where: str) -> tuple[Role, ...]:
    names: list[Any] = value if isinstance(value, list) else [value]
    known = {role.value: role for role in ROLES}
    names = [
        chosen(str(name), known, problem=f"{where}: unknown role {str(name)[:80]!r}", called="roles") for name in names
    ]
    if not names or len(set(names)) != len(names):
        raise BadOption(f"{where}: role must name at least one role, and each once")
    return tuple(known[name] for name in names)


def _method(name: str, where: str) -> str:
    return chosen(name, registry.names("methods"), problem=f"{where}: unknown method {name[:80]!r}")


def _check(rule: Rule, where: str) -> None:
    """Raise `BadOption` or `UnsupportedSpec` for a rule that means nothing."""
    if not rule.roles and rule.match is None:
        raise BadOption(f"{where} has neither role nor match", hint='role = "down" or match = "model.layers.0.*"')
    if rule.match is not None and not 0 < len(rule.match) <= MAX_PATTERN:
        raise BadOption(f"{where}: match must have 1 to {MAX_PATTERN} characters, has {len(rule.match)}")
    settings = bool(rule.settings) or rule.method is not None
    if rule.keep and settings:
        raise BadOption(f"{where}: keep = true stands beside settings of a quantized weight", hint="remove one of them")
    if not rule.keep and not settings:
        raise BadOption(f"{where} sets nothing", hint="set keep = true, bits, group_size, symmetric, method ...")
    try:
        AffineGroups(**{"bits": 4, "group_size": 128, **rule.settings})
    except UnsupportedSpec as error:
        raise UnsupportedSpec(f"{where}: {error}", hint=error.hint) from None
