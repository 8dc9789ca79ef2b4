"""Tensors under another prefix than the model's own names, which begin with `model.` and `lm_head.`.

    embed_tokens.weight                     written from the decoder inside the model
    base_model.model.model.layers.0 ...     from within a PEFT wrapper
    _orig_mod.model.layers.0 ...            by a compiled model; also model.layers.0._orig_mod ...
    module.model.layers.0 ...               by a data-parallel one
    llm.model.layers.0 ...                  the text model of a MiniCPM-V or -o, beside its towers

They are renamed when that is the only reading: under one prefix every tensor of the model, each once, and under no
other prefix as well. Beside a text model under `llm.` or `language_model.` stand towers, which are left aside and
named; beside any other nothing may stand that the model does not know, which whoever selects the weights checks.

Sources: torch `OptimizedModule`, `DistributedDataParallel`, `FullyShardedDataParallel`, `checkpoint_wrapper`;
PEFT `PeftModel`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from quantkit.errors import IncompleteCheckpoint, InconsistentCheckpoint
from quantkit.tensors.views import TensorView

WRAPPERS = frozenset(
    {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_fpw_module"}
)
"""Parts of names that torch's and others' wrappers put in anywhere, around a module that is as it was."""
TOWERED = ("llm", "language_model")
"""What a text model lies under beside towers."""
_MODEL, _HEAD = "model", "lm_head"
_TAILS = frozenset({"embed_tokens", "layers", "norm"})
_TABLES = frozenset({"inv_freq", "cos_cached", "sin_cached"})

Prefix = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Renamed:
    """Tensors by the model's own names, and a line for each thing that was done; none where nothing was."""

    tensors: Mapping[str, TensorView]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Name:
    """A tensor's name: without wrappers, split into what stands before the model's own part, and that part."""

    whole: str
    prefix: Prefix
    tail: Prefix

    @classmethod
    def of(cls, name: str) -> _Name:
        parts = tuple(part for part in name.split(".") if part not in WRAPPERS)
        at = next((i for i, part in enumerate(parts) if part in _TAILS or part == _HEAD), None)
        if at is None:
            at = next((i for i, part in enumerate(parts) if part == "rotary_emb" and parts[-1] in _TABLES), len(parts))
        return cls(name, parts[:at], parts[at:])

    @property
    def is_head(self) -> bool:
        return self.tail[:1] == (_HEAD,)

    def under(self, prefix: Prefix) -> str | None:
        """What the model calls the tensor if its decoder lies under `prefix`; None if it is not of that model."""
        if self.is_head:  # stands where the decoder does, or further out; never inside the decoder
            outer = prefix[:-1] if prefix[-1:] == (_MODEL,) else prefix
            return ".".join(self.tail) if self.prefix == outer[: len(self.prefix)] else None
        return ".".join((_MODEL, *self.tail)) if self.tail and self.prefix == prefix else None


def own_names(tensors: Mapping[str, TensorView], wanted: Callable[[], Iterable[str]], *, where: str) -> Renamed:
    """`tensors` by the names that the model gives them.

    Args:
        tensors: every tensor of the folder, quantized weights in their parts (`q_proj.qweight`).
        wanted: gives the names of the model's tensors, `model.layers.0.self_attn.q_proj.weight`; asked only where
            names are not all the model's own.
        where: begins every message.

    Raises:
        IncompleteCheckpoint: names under other prefixes, and under none of them all that the model has.
        InconsistentCheckpoint: two tensors, or two whole models, that could be meant.
    """
    names = [_Name.of(name) for name in tensors]
    prefixes = list(dict.fromkeys(name.prefix for name in names if name.tail and not name.is_head))
    if prefixes in ([], [(_MODEL,)]) and all(name.whole.split(".") == [*name.prefix, *name.tail] for name in names):
        return Renamed(tensors)
    modules = {module_of(name) for name in wanted()}
    missing = {prefix: _missing(names, prefix, modules) for prefix in prefixes}
    complete = [prefix for prefix, lacking in missing.items() if not lacking]
    if not complete:
        raise _incomplete(missing, where)
    if len(complete) > 1:
        raise InconsistentCheckpoint(
            f"{where} holds the model {len(complete)} times: under {' and under '.join(map(_shown, complete))}",
            hint="keep the tensors of the one that is meant",
        )
    return _renamed(tensors, names, complete[0], where)


def module_of(name: str) -> str:
    """The module that a tensor belongs to: its name without the last part."""
    return name.rpartition(".")[0]


def _missing(names: Iterable[_Name], prefix: Prefix, modules: Iterable[str]) -> list[str]:
    """Modules of the model that no tensor under `prefix` belongs to."""
    found = {module_of(own) for name in names if (own := name.under(prefix)) is not None}
    return [module for module in modules if module not in found]


def _incomplete(missing: Mapping[Prefix, list[str]], where: str) -> IncompleteCheckpoint:
    prefix, lacking = min(missing.items(), key=lambda item: len(item[1]))
    several = f"; the names have {len(missing)} prefixes, and under none is the whole model" if len(missing) > 1 else ""
    head_only = '; config.json may lack "tie_word_embeddings": true' if lacking == [_HEAD] else ""
    return IncompleteCheckpoint(
        f"{where}: under {_shown(prefix)} {len(lacking)} of the model's tensors are missing, such as that of "
        f"{min(lacking)!r}{several}",
        hint=f"download the whole model, or save it again from the model itself, without a wrapper{head_only}",
    )


def _renamed(tensors: Mapping[str, TensorView], names: Iterable[_Name], prefix: Prefix, where: str) -> Renamed:
    found: dict[str, TensorView] = {}
    origin: dict[str, str] = {}
    aside: list[str] = []
    towers = bool(set(prefix) & set(TOWERED))
    for name in names:
        own = name.under(prefix)
        if own is None and towers:
            aside.append(name.whole)
            continue
        own = name.whole if own is None else own
        if own in origin:
            raise InconsistentCheckpoint(
                f"{where}: tensors {origin[own][:120]!r} and {name.whole[:120]!r} are both {own[:120]!r}",
                hint="keep the one that is meant",
            )
        origin[own] = name.whole
        found[own] = replace(tensors[name.whole], name=own)
    moved = next(((own, whole) for own, whole in origin.items() if own != whole), None)
    notes = [f"tensor names are read without their prefix: {moved[1]!r} is {moved[0]!r}"] if moved else []
    if aside:
        towers_named = ", ".join(dict.fromkeys(f"{name.split('.')[0]}." for name in aside))[:120]
        others = f"{len(aside)} other tensors are left aside ({towers_named})"
        notes.append(f"only the text model under {_shown(prefix)} is read; {others}")
    return Renamed(found, tuple(notes))


def _shown(prefix: Prefix) -> str:
    """What stands before the model's own names, as users see it."""
    outer = prefix[:-1] if prefix and prefix[-1] == _MODEL else prefix
    if prefix == (_MODEL,):
        return "the model's own names"
    if not prefix:
        return "no prefix"
    return repr(".".join((*outer, "")))
