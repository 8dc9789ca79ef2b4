"""What a user asks for, read and checked: a file type, an algorithm, and types of single tensors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit.errors import BadOption, UnsupportedSpec
from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.imatrix.matrix import ImportanceMatrix
from quantkit.exporters.gguf.imatrix.reading import read_importance
from quantkit.exporters.gguf.mixture.example import Example
from quantkit.exporters.gguf.mixture.file_types import FILE_TYPES, MIXED, FileType
from quantkit.exporters.gguf.mixture.rules import Traits, Wishes, fitting, tensor_types
from quantkit.exporters.gguf.searched.dense import SEARCHED
from quantkit.exporters.gguf.types.codebooks import MXFP4
from quantkit.exporters.gguf.types.values import LAYOUTS
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import ModelSpec
from quantkit.protocols import ExportOptions
from quantkit.tensors.block_options import CALIBRATED, BlockOptions
from quantkit.tensors.views import QuantizedView

REFERENCE = "reference"
ALGORITHMS = (SEARCHED, REFERENCE, CALIBRATED)
"""The first one is the default."""
TENSOR_TYPES: Mapping[str, BlockType] = {
    block.name.lower(): block for block in (blocks.F32, blocks.F16, blocks.BF16, *blocks.QUANTIZED.values(), *LAYOUTS)
}
"""Types that single tensors can be given."""


@dataclass(frozen=True, slots=True)
class Request:
    """A file of dense weights that are quantized on the way.

    kind: its type. wishes: what stands above the rules. example: the file whose types stand in place of the rules.
    importance: how much columns count, where a file says it.
    """

    kind: FileType
    wishes: Wishes
    options: BlockOptions
    example: Example | None = None
    importance: ImportanceMatrix | None = None

    @property
    def algorithm(self) -> str:
        """What quantizes."""
        return self.options.algorithm or ALGORITHMS[0]

    def to_json(self) -> dict[str, Any]:
        """What was asked for, for a manifest."""
        read = {"imatrix": self.importance.to_json()} if self.importance is not None else {}
        return {"type": self.kind.name, **self.options.to_json(), "algorithm": self.algorithm, **read}

    def types(self, spec: ModelSpec, matrices: Mapping[str, tuple[int, ...]]) -> dict[str, BlockType]:
        """The block type of every matrix, by GGUF's names.

        Raises:
            BadOption: a pattern that matches no tensor, or an example of another model.
            UnsupportedSpec: a type that was asked for by name, and whose blocks the rows of the tensor do not fill; a
                type of the example that is not written.
            Others: from `ImportanceMatrix.check`.
        """
        for pattern, _ in self.wishes.patterns:
            if not any(map(pattern.search, matrices)):
                hint = f"names are like {', '.join(list(matrices)[1:4])}"
                raise BadOption(f"--tensor-type {pattern.pattern!r} matches no tensor", hint=hint)
        chosen = self._by_rules(spec, matrices) if self.example is None else self._as_in(self.example, matrices)
        if self.importance is not None:
            self.importance.check(matrices, chosen, self.kind)
        return chosen

    def _by_rules(self, spec: ModelSpec, matrices: Mapping[str, tuple[int, ...]]) -> dict[str, BlockType]:
        # llama.cpp has other rules where it knows what inputs look like.
        weighted = self.algorithm == CALIBRATED or self.importance is not None
        chosen = tensor_types(matrices, traits_of(spec), self.kind, self.wishes, weighted=weighted)
        for name, block in chosen.items():
            if matrices[name][-1] % block.elements:
                raise UnsupportedSpec(
                    f"{name}: its rows of {matrices[name][-1]} are not whole blocks of {block.elements}, as gguf's "
                    f"{block.name.lower()} needs them",
                    hint="choose another --output-type or --token-embedding-type",
                )
        return chosen

    def _as_in(self, example: Example, matrices: Mapping[str, tuple[int, ...]]) -> dict[str, BlockType]:
        example.check(matrices)
        found = {name: self.wishes.of(name) for name in matrices}
        return {
            name: example.type_of(name, TENSOR_TYPES) if block is None else fitting(block, matrices[name][-1])
            for name, block in found.items()
        }

    def notes(self, chosen: Mapping[str, tuple[BlockType, tuple[int, ...]]]) -> Iterator[str]:
        """What the user should know about the types of tensors, given with their shapes."""
        matrices = {name: found for name, found in chosen.items() if len(found[1]) > 1}
        counts = Counter(block.name.lower() for block, _ in matrices.values())
        yield f"{self.kind.name}: " + ", ".join(f"{count} x {kind}" for kind, count in counts.most_common())
        odd = [name for name, (block, shape) in matrices.items() if shape[-1] % 256 and self.kind.block.elements == 256]
        if odd:
            kinds = ", ".join(sorted({matrices[name][0].name.lower() for name in odd}))
            yield (
                f"{len(odd)} matrices ({odd[0]} ...) become {kinds}: their rows are no whole blocks of 256, as "
                f"{self.kind.block.name.lower()} needs them"
            )
        if self.importance is not None:
            yield from self.importance.notes({name: shape for name, (_, shape) in matrices.items()})
        elif self.kind.name == "q2_k_s" and self.algorithm == REFERENCE:
            yield "llama-quantize writes q2_k_s with importance weights only, because it is much worse without"
        if self.kind.block is MXFP4 and MXFP4.name.lower() not in counts:
            yield "mxfp4_moe has mxfp4 for experts alone, which this model has not: --pure gives it to every matrix"


def traits_of(spec: ModelSpec) -> Traits:
    """What the rules ask of a model."""
    gqa = spec.num_attention_heads // spec.num_key_value_heads
    return Traits(architecture=spec.architecture, layers=spec.num_hidden_layers, gqa=gqa)


def requested(checkpoint: Checkpoint, options: ExportOptions) -> Request | None:
    """The file type and wishes in `options`, None where they ask for no mixture of types.

    Raises:
        BadOption: an unknown algorithm or type, or options that mean nothing for this type or source.
        UnsupportedSpec: weights that are quantized already; names one.
        Others: from `read_importance`.
    """
    choices = options.blocks or BlockOptions()
    if choices.algorithm is not None and choices.algorithm not in ALGORITHMS:
        raise BadOption(f"gguf has no algorithm {choices.algorithm!r}", hint=f"choose one of: {', '.join(ALGORITHMS)}")
    if options.type not in MIXED and choices == BlockOptions():
        return None
    example = None if choices.like is None else Example.open(choices.like)
    if example is not None and choices.pure:
        raise BadOption("--pure and --like each choose all types", hint="leave one of them out")
    if example is not None and choices.algorithm is None:
        raise BadOption("--like takes types alone, not how they are quantized", hint=f"add --algorithm {CALIBRATED}")
    if options.type is None and example is not None:
        options = replace(options, type=example.kind.name)
    if options.type is None or options.type not in FILE_TYPES:
        raise BadOption(
            "--algorithm, --imatrix and the types of single tensors say how weights are quantized; "
            f"{options.type or 'no type'} quantizes none",
            hint="add --type q4_k_m, or leave them out",
        )
    if options.type not in MIXED and choices.algorithm is None:
        raise BadOption(
            f"types of single tensors and --imatrix are llama.cpp's way of writing {options.type}",
            hint=f"add --algorithm {REFERENCE}",
        )
    if choices.algorithm != CALIBRATED:
        refuse_quantized(checkpoint, options.type, asked=choices.algorithm is not None)
    importance = None if choices.imatrix is None else _importance(choices.imatrix, choices.algorithm)
    wishes = wished(choices, tied=checkpoint.spec.tie_word_embeddings)
    return Request(FILE_TYPES[options.type], wishes, choices, example, importance)


def _importance(path: Path, algorithm: str | None) -> ImportanceMatrix:
    if algorithm == CALIBRATED:
        raise BadOption(
            "--imatrix is for --algorithm searched and reference; the calibrated one measures inputs itself",
            hint="leave --imatrix out, and give the text with --calibration",
        )
    return read_importance(path)


def refuse_quantized(checkpoint: Checkpoint, kind: str, *, asked: bool) -> None:
    """Raise `UnsupportedSpec` for weights that are quantized already. asked: whether an algorithm was asked for."""
    for name, view in checkpoint.weights.items():
        if isinstance(view, QuantizedView):
            what = "--algorithm is for dense weights" if asked else f"gguf writes {kind} from dense weights"
            raise UnsupportedSpec(
                f"{name}: {what}, and it is quantized already ({view.scheme}); nothing is quantized twice, gguf",
                hint="give the original model, or leave --algorithm out and choose a type that holds its codes, or f16",
            )


def wished(options: BlockOptions, *, tied: bool) -> Wishes:
    """The types that options give single tensors, read and checked."""
    output = None if options.output_type is None else _type(options.output_type, "--output-type")
    embedding = None if options.embedding_type is None else _type(options.embedding_type, "--token-embedding-type")
    if tied and output is not None and embedding is not None:
        raise BadOption(
            "the head is the embedding in this model, and both were given a type", hint="leave --output-type out"
        )
    return Wishes(
        patterns=tuple(map(_pattern, options.tensor_types)), output=output, embedding=embedding, pure=options.pure
    )


def _pattern(text: str) -> tuple[re.Pattern[str], BlockType]:
    pattern, equals, kind = text.rpartition("=")
    if not equals or not pattern:
        raise BadOption(f"--tensor-type {text!r} is not PATTERN=TYPE", hint="such as attn_v=q8_0")
    try:
        return re.compile(pattern.lower()), _type(kind, "--tensor-type")
    except re.error as error:
        raise BadOption(f"--tensor-type {pattern!r} is no regular expression: {error}") from None


def _type(name: str, option: str) -> BlockType:
    if name.lower() not in TENSOR_TYPES:
        raise BadOption(f"{option}: gguf has no type {name!r}", hint=f"choose one of: {', '.join(TENSOR_TYPES)}")
    return TENSOR_TYPES[name.lower()]
