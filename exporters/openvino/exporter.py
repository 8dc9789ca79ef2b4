"""OpenVINO IR: the folder that OpenVINO, and the `LLMPipeline` of OpenVINO GenAI, run as it is.

    openvino_model.xml             a stateful decoder, version 11 of the IR (`decoder.py`), with MiniCPM's scalars
    openvino_model.bin             its weights (`weights.py`) and small constants (`layout.py`)
    openvino_tokenizer.xml .bin, openvino_detokenizer.xml .bin    if openvino-tokenizers is installed (`tokenizer.py`)
    config.json, tokenizer*, ...   the config, defaults spoken out, and the small files as they were

Quantized weights are carried as they are, embedding and head among them: a code of 2, 4 or 8 bits each, symmetric or
with a zero point per group, any group size. 3 bits are stored in 4; 5, 6 and 7 in 8. Dense ones become f16, or the type
that is asked for, rounded once. A symmetric code of 4 or 8 bits is two's complement.

Types: f16, bf16, f32.

GenAI makes of a text the ids that the model's own tokenizer makes, BOS included. Unless it is told not to
(`apply_chat_template=False`), it wraps a text as the user's turn first, and then puts no BOS before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from quantkit.exporters._graph_options import refuse_block_options, refuse_graph_options
from quantkit.exporters._hf_config import config_files, native_config, with_dtype
from quantkit.exporters._hf_folder import checked_type
from quantkit.exporters._plain_scales import with_plain_scales
from quantkit.exporters._recorded import measured
from quantkit.exporters._widths import checked_bits, recorded_options, stored_wider
from quantkit.exporters.openvino.graph import aligned
from quantkit.exporters.openvino.layout import lay_out, unit_bytes
from quantkit.exporters.openvino.reading import BIN_NAME, XML_NAME, read_folder
from quantkit.exporters.openvino.tokenizer import TextGraphs, tokenizer_files, tokenizer_version
from quantkit.exporters.openvino.weights import WIDTHS, Stored, buffers, element_of
from quantkit.files.planned_files import Buffer, PlannedArtifact, PlannedFile, PlannedTensor, Unit, blob
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.config import token_ids_value
from quantkit.models.context import check_plain_heads
from quantkit.models.folding import with_architecture
from quantkit.protocols import ExportOptions
from quantkit.tensors.cast import FLOATS, converted
from quantkit.tensors.schemes.affine_groups import affine
from quantkit.tensors.views import QuantizedView, TensorView, Weight
from quantkit.tensors.widening import wider_view
from quantkit.text.end_tokens import GENERATION_FILE

NAME = "openvino"
TYPES = ("f16", "bf16", "f32")
DEFAULT_TYPE = "f16"
LONGROPE_NOTE = (
    "LongRoPE's factors are chosen at every step by the largest position so far, as in transformers; keys of earlier "
    "steps keep the factors that they had, so a text that grows beyond {} tokens differs from one that is read at once"
)


class OpenVINO:
    """See the module's docstring; the attributes are those of `quantkit.protocols.Exporter`."""

    name = NAME
    summary = "OpenVINO IR for OpenVINO and OpenVINO GenAI"
    types = TYPES
    targets = ()
    widths = WIDTHS[1:]
    engines = ("openvino", "openvino-numpy", "reference")
    library = "openvino"

    def recognizes(self, path: Path) -> bool:
        """Whether `path` is a folder with such a graph in it."""
        try:
            return (path / XML_NAME).is_file()
        except OSError:
            return False

    def prepare(self, checkpoint: Checkpoint, options: ExportOptions) -> PlannedArtifact:
        """Plan the folder: one unit per weight, one for the constants.

        Raises:
            BadOption: an unknown type, architecture or width.
            UnsupportedSpec: codes without integer zero points; names the weight.
        """
        check_plain_heads(checkpoint, NAME)
        refuse_block_options(options, container=NAME)
        refuse_graph_options(options, container=NAME)
        type_name = checked_type(options.type, self.types, container=NAME) or DEFAULT_TYPE
        bits = checked_bits(options.bits, self.widths, container=NAME)
        source = with_plain_scales(with_architecture(checkpoint, options.arch))
        wider = stored_wider(source, bits or min(WIDTHS), container=NAME, asked=bits is not None, keeps_ternary=True)
        weights = {name: _in_width(weight) for name, weight in wider.model.weights.items()}
        model = replace(wider.model, weights=weights)
        stored = {name: _stored(weight, type_name) for name, weight in weights.items()}
        layout = lay_out(model.spec, stored)
        units = [_unit(weights[name], weight) for name, weight in stored.items()]
        constants = Unit("constants", len(layout.constants), lambda: (layout.constants,))
        text = tokenizer_files(model)
        return PlannedArtifact(
            format=NAME,
            folder=True,
            files=(
                *config_files(model.spec, with_dtype(native_config(model), FLOATS[type_name])),
                blob(XML_NAME, layout.xml),
                PlannedFile(BIN_NAME, (*units, constants)),
                *(blob(name, data) for name, data in text.files.items()),
                *(blob(name, data) for name, data in sorted(_small_files(model).items())),
            ),
            tensors=tuple(_planned(weight) for weight in stored.values()),
            options={"type": type_name, **recorded_options(options), **_text_options(text)},
            notes=(*model.notes, *wider.notes, *_notes(wider.model, model), *text.notes),
            measure=measured(model, self.read, threads=options.threads),
            stored={
                name: weight
                for name, weight in weights.items()
                if isinstance(weight, QuantizedView) and weight is not source.weights[name]
            },
        )

    def read(self, path: Path) -> Checkpoint:
        """Open such a folder; raises as `read_folder`."""
        return read_folder(path)


def _in_width(weight: Weight) -> Weight:
    """`weight` in codes of 2, 4 or 8 bits: the next of these, where it has others; the same numbers."""
    if not isinstance(weight, QuantizedView):
        return weight
    scheme = affine(weight.name, weight.scheme, container=NAME)
    bits = next(width for width in WIDTHS if width >= scheme.bits)
    return weight if bits == scheme.bits else wider_view(weight, bits)


def _stored(weight: Weight, type_name: str) -> Stored:
    if isinstance(weight, TensorView):
        return Stored(weight.name, weight.shape, type_name)
    scheme = affine(weight.name, weight.scheme, container=NAME)
    scheme.groups(weight.shape[1], name=weight.name)
    return Stored(weight.name, weight.shape, element_of(scheme), scheme)


def _planned(stored: Stored) -> PlannedTensor:
    kind = str(stored.scheme) if stored.scheme else stored.element
    return PlannedTensor(stored.name, kind, stored.shape, sum(part.nbytes for part in stored.parts))


def _unit(weight: Weight, stored: Stored) -> Unit:
    def produce() -> Iterator[Buffer]:
        sizes = [part.nbytes for part in stored.parts]
        if isinstance(weight, QuantizedView):
            for size, data in zip(sizes, buffers(stored, weight.read()), strict=True):
                yield data
                yield bytes(aligned(size) - size)
            return
        position = 0
        for chunk in weight.chunks():
            yield converted(weight.name, chunk, FLOATS[stored.element], offset=position)
            position += chunk.size
        yield bytes(aligned(sizes[0]) - sizes[0])

    return Unit(weight.name, unit_bytes(stored), produce)


def _small_files(model: Checkpoint) -> dict[str, bytes]:
    """The files that travel with `model`; generation_config.json even where it has none: GenAI looks there for the end
    tokens, and runs nothing without one."""
    files = {name: read() for name, read in model.files.items()}
    spec = model.spec
    if GENERATION_FILE not in files and spec.eos_token_ids:
        tokens = {"bos_token_id": spec.bos_token_id, "eos_token_id": token_ids_value(spec.eos_token_ids)}
        said = {key: value for key, value in tokens.items() if value is not None}
        files[GENERATION_FILE] = (json.dumps(said, indent=2) + "\n").encode()
    return files


def _text_options(text: TextGraphs) -> dict[str, str]:
    """Which release made the tokenizer's graphs: their bytes depend on it."""
    version = tokenizer_version() if text.files else None
    return {"openvino_tokenizers": version} if version else {}


def _notes(given: Checkpoint, model: Checkpoint) -> Iterator[str]:
    """What the user should know about the numbers of `model`, whose codes have the container's widths."""
    rope = model.spec.rope
    if not rope.turns_alike(1, model.spec.max_position_embeddings):
        yield LONGROPE_NOTE.format(rope.original_max_position_embeddings)
    views = ((view, model.weights[name]) for name, view in given.weights.items())
    schemes = [(a.scheme, b.scheme) for a, b in views if isinstance(a, QuantizedView) and isinstance(b, QuantizedView)]
    for scheme, width in dict.fromkeys((str(old), new.bits) for old, new in schemes if old.bits != new.bits):
        yield f"{scheme}: its codes are stored as {width} bits, the numbers are the same"


EXPORTER = OpenVINO()
