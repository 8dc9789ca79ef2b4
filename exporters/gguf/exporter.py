"""GGUF: the single file that llama.cpp and everything built on it loads.

    header         metadata and tensor infos, see `quantkit.exporters.gguf.container.file`
    tensors        token_embd, rope factors, blk.0 ..., output_norm, output (absent when tied); each padded to 32 bytes

The numbers of `--arch native` are those of llama.cpp's architecture `minicpm`: embedding_scale = scale_emb,
residual_scale = scale_depth / sqrt(layers), logit_scale = hidden / dim_model_base (the graph divides by it).
`--arch llama` folds them away. Rows of q and k lie in pairs (see `Place`). Norms are F32. MLA: `families/latent.py`.

A quantized weight is carried: its codes and scales become blocks as they are, each scale repeated per block.

    type           block  bits    holds
    tq1_0 tq2_0    256    1.7 2   code - zero in -1..1; exact
    q2_0           64     2       code - zero in -1..2, or zero - code with the scale negated; exact
    q4_0 q5_0 q8_0 32     4 5 8   code - zero in -8..7, -16..15, -128..127; exact
    q4_1 q5_1      32     4 5     code in 0..15, 0..31, and an offset; of a zero point, scale * zero rounded to float16
    f32 f16 bf16                  scale * (code - zero), rounded once

Dense matrices beside quantized ones become q8_0, as llama.cpp makes embeddings and heads at least. A dense model is
tq1_0, tq2_0 or q2_0 only where it is ternary as it stands (`ternary.py`), its embedding and head q8_0.

q2_k to q6_k, iq4_nl, iq4_xs and mxfp4_moe are llama.cpp's mixtures of types (`mixture/`), for dense models alone. Their
blocks are searched by weights alone (`searched/`), or with `--algorithm reference` what ggml's own quantizers make
(`reference/`), or the solver's codes with `--algorithm calibrated` (`types/schemes.py`); so are other types, if asked.
Sources: llama.cpp `conversion/minicpm.py`, `conversion/llama.py`, `src/models/{minicpm,llama}.cpp`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from quantkit.errors import (
    BadOption,
    IncompleteCheckpoint,
    InconsistentCheckpoint,
    QuantkitError,
    UnsupportedModel,
    UnsupportedSpec,
)
from quantkit.exporters._graph_options import refuse_graph_options
from quantkit.exporters._recorded import measured
from quantkit.exporters._widths import checked_bits
from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.card.entries import card_file
from quantkit.exporters.gguf.carrying import carried_scheme, holds, own_scheme, wider_notes
from quantkit.exporters.gguf.choice import (
    TYPES,
    chosen_types,
    file_number,
    main_type,
    recorded,
    requested_types,
    wanted_type,
)
from quantkit.exporters.gguf.container.file import MAGIC, GGUFFile
from quantkit.exporters.gguf.container.parts import planned_files
from quantkit.exporters.gguf.container.split import first_part, read_model
from quantkit.exporters.gguf.container.types import padding, tensor_bytes
from quantkit.exporters.gguf.families.latent import eps_notes
from quantkit.exporters.gguf.imatrix.writing import planned_importance
from quantkit.exporters.gguf.metadata import model_entries, quantization_entries
from quantkit.exporters.gguf.mixture.candidates import candidates, choosing
from quantkit.exporters.gguf.mixture.file_types import MIXED
from quantkit.exporters.gguf.mixture.request import Request, requested
from quantkit.exporters.gguf.mixture.solved import check_scheme, check_solved, solved_schemes
from quantkit.exporters.gguf.reading import read_config, read_quantization
from quantkit.exporters.gguf.sampling import generation_files, sampling_entries, sampling_notes
from quantkit.exporters.gguf.searched.dense import DenseRows
from quantkit.exporters.gguf.tensors import (
    LONG_FACTORS,
    PLAIN,
    SHORT_FACTORS,
    Place,
    blocks_view,
    dense_view,
    places,
    quantized_view,
    unit,
)
from quantkit.exporters.gguf.ternary import AS_THEY_STAND
from quantkit.exporters.gguf.types.values import LAYOUTS
from quantkit.exporters.gguf.vocabulary import (
    check_ends,
    files_of,
    read_tokenizer,
    template_notes,
    tokenizer_notes,
    unfollowed_keys,
    vocabulary_entries,
)
from quantkit.files.planned_files import PlannedArtifact, PlannedTensor, Unit
from quantkit.files.source_file import SourceFile
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.context import check_dense
from quantkit.models.folding import with_architecture
from quantkit.models.layouts.small_files import CARD_NAME, is_legal
from quantkit.models.recognition import config_notes
from quantkit.models.spec import ModelSpec
from quantkit.protocols import ExportOptions
from quantkit.tensors.block_options import CALIBRATED
from quantkit.tensors.scheme import Scheme
from quantkit.tensors.views import QuantizedView, TensorView, Weight
from quantkit.text.vocabulary import Vocabulary, has_vocabulary, read_vocabulary

READ = (*TYPES.values(), *LAYOUTS)
"""Types of tensors that are read."""

MOVED = "largest_move_in_steps"
"""The figure that tells, by weight, how far rounded minimums moved its values at most, in steps of its scale."""


class GGUF:
    """See the module's docstring; the attributes are those of `quantkit.protocols.Exporter`."""

    name = "gguf"
    summary = "single file for llama.cpp, Ollama, LM Studio and others"
    types = (*TYPES, *MIXED)
    targets = ()
    widths = ()
    engines = ("llama-cpp", "reference")
    planned_importance = staticmethod(planned_importance)

    def recognizes(self, path: Path) -> bool:
        """Whether `path` is a file that is called .gguf or starts like one, or a folder with the parts of one model."""
        if not path.is_file():
            return first_part(path) is not None
        if path.suffix == ".gguf":
            return True
        try:
            file = SourceFile.open(path)
            return file.size >= len(MAGIC) and file.read(0, len(MAGIC)).tobytes() == MAGIC
        except QuantkitError:
            return False

    def schemes(self, checkpoint: Checkpoint, options: ExportOptions) -> dict[str, Scheme]:
        """What every matrix of `checkpoint` is to become for a file of these options, by weight name.

        Raises:
            BadOption: options that ask for no mixture of types. Others: see `prepare`.
        """
        request = requested(checkpoint, options)
        if request is None:
            raise BadOption("calibration is for types that dense weights become", hint="add --type q4_k_m, or another")
        return solved_schemes(requested_types(checkpoint, request))

    candidates, choosing = staticmethod(candidates), staticmethod(choosing)

    def prepare(self, checkpoint: Checkpoint, options: ExportOptions) -> PlannedArtifact:
        """Plan the file, or the folder of its parts: a header, then one unit per tensor with its padding.

        Without a type, dense sources become f16, and each quantized weight takes the smallest type that holds it.

        Raises:
            BadOption: an unknown type, algorithm or architecture, or a choice of types that means nothing here.
            UnsupportedSpec: a weight that the type cannot hold; names the tensor. Of dense weights that are to be
                ternary, writing raises it.
            UnsupportedModel, MalformedFile, InconsistentCheckpoint: from the tokenizer, see `read_vocabulary`.
        """
        check_dense(checkpoint, "export")
        refuse_graph_options(options, container=self.name)
        checked_bits(options.bits, self.widths, container=self.name)
        request = requested(checkpoint, options)
        model = with_architecture(checkpoint, options.arch)
        if request is not None:
            chosen, main = requested_types(model, request), request.kind.block
        else:
            chosen = chosen_types(model, wanted_type(options))
            main = main_type(chosen)
        vocabulary = read_vocabulary(model) if has_vocabulary(model) else None
        factors = _factors(model.spec)
        infos = [(place.name, block, place.slot.shape) for place, block in chosen.items()]
        infos[1:1] = [(name, blocks.F32, values.shape) for name, values in factors.items()]
        carried = {
            place: weight
            for place, block in chosen.items()
            if isinstance(weight := model.weights[place.slot.name], QuantizedView) and block not in PLAIN
        }
        if request is not None and request.algorithm == CALIBRATED:
            check_solved(model, chosen)
        schemes = {
            place.name: weight.scheme if chosen[place] in LAYOUTS else carried_scheme(chosen[place], weight.scheme)
            for place, weight in carried.items()
        }
        tokenizer = vocabulary_entries(vocabulary, model.spec.eos_token_ids)
        kind = request.kind.id if request else file_number(model.spec, chosen)
        entries = [*model_entries(model, kind), *sampling_entries(model), *tokenizer, *quantization_entries(schemes)]
        if request is not None and request.importance is not None:
            entries += request.importance.entries()
        moved: dict[str, float] = {}
        dense = DenseRows(model, request.algorithm, options.threads, request.importance) if request else None
        units = [unit(model.weights[place.slot.name], place, block, moved, dense) for place, block in chosen.items()]
        units[1:1] = [_constant(name, values) for name, values in factors.items()]
        files = planned_files(entries, infos, units, options.split_bytes)
        parts = (f"give engines {files[0].name}: they find the other parts by its name",) if files[1:] else ()
        return PlannedArtifact(
            format=self.name,
            folder=options.split_bytes is not None,
            files=files,
            tensors=tuple(PlannedTensor(n, b.name.lower(), s, tensor_bytes(b, s)) for n, b, s in infos),
            options=recorded(main, options, request),
            notes=(*model.notes, *_notes(model, chosen, main, vocabulary, request), *parts),
            measure=measured(model, self.read, threads=options.threads),
            stored={p.slot.name: replace(w, stored_as=chosen[p].name.lower()) for p, w in carried.items()},
            figures=lambda: {MOVED: moved} if moved else {},
            memory=dense.memory if dense else 0,
        )

    def read(self, path: Path) -> Checkpoint:
        """Open a GGUF file of architecture minicpm, minicpm3 or llama, ours or another's; of several parts, any one.

        Blocks become codes and scales, in groups of one block unless larger ones are recorded. Blocks with a minimum
        are read as `OffsetGroups`: the minimum is a float of its own, whatever it was rounded from. K-quants and IQ4_XS
        are read as `SuperBlocks`, IQ4_NL and MXFP4 as `Codebook`.

        Raises:
            UnsupportedSpec: a tensor type that is not read.
            IncompleteCheckpoint, InconsistentCheckpoint: tensors that are missing, unknown or of another shape.
            Others: see `read_model`, `read_config`, `read_tokenizer`.
        """
        gguf = read_model(path)
        config, spec = read_config(gguf)
        recorded = read_quantization(gguf)
        _check_tensors(gguf, spec, recorded)
        tokenizer = read_tokenizer(gguf, spec.vocab_size)
        if isinstance(tokenizer, Vocabulary):
            check_ends(gguf, tokenizer, spec.eos_token_ids)
        return Checkpoint(
            path=gguf.path,
            format=self.name,
            config=config,
            spec=spec,
            weights={place.slot.name: _view(gguf, place, recorded.get(place.name)) for place in places(spec)},
            files={**files_of(tokenizer), **generation_files(gguf, spec), **card_file(gguf)},
            inputs=tuple(file.path for file in gguf.files),
            notes=(
                *config_notes(config, where=str(path)),
                *eps_notes(spec),
                *((tokenizer,) if isinstance(tokenizer, str) else (*unfollowed_keys(gguf), *template_notes(tokenizer))),
            ),
        )


def _factors(spec: ModelSpec) -> dict[str, np.ndarray]:
    """LongRoPE's tensors, which every layer shares."""
    if spec.rope.kind != "longrope":
        return {}
    return {
        LONG_FACTORS: np.array(spec.rope.long_factor, "<f4"),
        SHORT_FACTORS: np.array(spec.rope.short_factor, "<f4"),
    }


def _constant(name: str, values: np.ndarray) -> Unit:
    data = values.tobytes() + bytes(padding(values.nbytes))
    return Unit(name, len(data), lambda: (data,))


def _notes(
    model: Checkpoint,
    chosen: Mapping[Place, BlockType],
    main: BlockType,
    vocabulary: Vocabulary | None,
    request: Request | None,
) -> Iterator[str]:
    """What the user should know about the file."""
    dense = [place for place in chosen if isinstance(model.weights[place.slot.name], TensorView)]
    eight = [place.name for place in dense if chosen[place] is blocks.Q8_0]
    if len(dense) < len(chosen) and eight:
        yield f"{len(eight)} dense matrices ({eight[0]} ...) become q8_0 beside the quantized ones"
    yield from wider_notes((block, model.weights[place.slot.name]) for place, block in chosen.items())
    if request is not None:
        yield from request.notes({place.name: (block, place.slot.shape) for place, block in chosen.items()})
    odd = [place.name for place in dense if chosen[place] is blocks.F16 and main not in PLAIN]
    if odd and request is None:
        yield f"{len(odd)} tensors ({odd[0]} ...) stay f16: their rows are not whole blocks of {blocks.Q8_0.elements}"
    stand = [place.name for place in dense if chosen[place] in AS_THEY_STAND]
    if stand and request is None:
        yield f"{len(stand)} dense matrices ({stand[0]} ...) are taken as they stand: each must be ternary"
    if blocks.Q2_0 in chosen.values():
        yield "llama.cpp reads q2_0 since mid-2026: older releases, and engines built on them, refuse the file"
    rope = model.spec.rope
    if rope.kind == "dynamic":
        yield (
            f"llama.cpp has no dynamic NTK: the file is right up to {rope.original_max_position_embeddings} tokens, "
            "the context that it names; do not extend it"
        )
    if rope.short_factor != rope.long_factor:
        yield (
            "llama.cpp chooses LongRoPE's long factors by the context that it allocates, not by the text's length: "
            f"above {rope.original_max_position_embeddings} tokens"
        )
    yield from eps_notes(model.spec)
    yield from tokenizer_notes(model, vocabulary)
    yield from sampling_notes(model)
    legal = sorted(name for name in model.files if is_legal(name) or name == CARD_NAME)
    if legal:
        yield f"left behind, since a GGUF file holds no other files: {', '.join(legal)}"


def _check_tensors(gguf: GGUFFile, spec: ModelSpec, recorded: Mapping[str, Scheme]) -> None:
    """Exactly the tensors of the model, with their shapes, in types that are read; records only of blocks."""
    expected = {place.name: place.slot.shape for place in places(spec)}
    expected |= {name: values.shape for name, values in _factors(spec).items()}
    for name, shape in expected.items():
        info = gguf.tensors.get(name)
        if info is None:
            raise IncompleteCheckpoint(f"{gguf.path}: tensor {name!r} is missing")
        if info.shape != shape:
            raise InconsistentCheckpoint(f"{gguf.path}: tensor {name!r} is {info.shape}, the metadata makes it {shape}")
        if info.type not in READ or (len(shape) == 1 and info.type not in PLAIN):
            raise UnsupportedSpec(
                f"{gguf.path}: tensor {name!r} is {info.type.name}, which is not read",
                hint=f"types that are read: {', '.join(block.name for block in READ)}",
            )
    for name in gguf.tensors:
        if name not in expected:
            raise UnsupportedModel(f"{gguf.path}: tensor {name!r} is not part of such a model")
    for name in recorded:
        if name not in gguf.tensors or gguf.tensors[name].type in PLAIN:
            raise InconsistentCheckpoint(f"{gguf.path}: codes are recorded for {name[:80]!r}, which has none")


def _view(gguf: GGUFFile, place: Place, recorded: Scheme | None) -> Weight:
    block = gguf.tensors[place.name].type
    if block in PLAIN:
        return dense_view(gguf, place)
    if block in LAYOUTS:
        if recorded is not None:
            check_scheme(block, recorded, f"{gguf.path}: tensor {place.name!r}")
        return blocks_view(gguf, place)
    scheme = recorded or own_scheme(block)
    held = holds(block, scheme, place.slot.shape[1])
    if not held or (not block.has_minimum and carried_scheme(block, scheme) != scheme):
        raise InconsistentCheckpoint(
            f"{gguf.path}: tensor {place.name!r} is recorded as {scheme}, {block.name} holds no such codes"
        )
    return quantized_view(gguf, place, carried_scheme(block, scheme))


EXPORTER = GGUF()
