"""ONNX: the folder that onnxruntime and onnxruntime-genai load.

    model.onnx           the graph, see `graph/decoder.py`
    model.onnx.data      its weights, see `layouts.py` and `places.py`
    genai_config.json    by which onnxruntime-genai runs the folder; not where attention is sparse
    config.json, tokenizer*, *.jinja, ...

Types: what the graph computes in, f32 or f16; quantized weights keep their codes, dense ones and scales are stored in
it. MiniCPM's three scalars are constants of the graph. Operators (`ExportOptions.ops`): "contrib", those of
onnxruntime; "standard", those of ONNX alone. The rotation is baked for `ExportOptions.context` tokens, at most and by
default those of config.json. Up to LongRoPE's original context its short factors turn them. In longer graphs whose two
lists differ, each run chooses by its length: the long ones for a run over more tokens, those in the cache included.

Attention (`ExportOptions.attention`) is dense, or sparse as config.json's `sparse_config` says, in operators of ONNX
alone; see `quantkit.exporters.onnx.sparse`.

A reader takes such a folder only if the graph is, node by node, the one that config.json makes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from quantkit.errors import InconsistentCheckpoint, UnsupportedSpec
from quantkit.exporters._graph_options import refuse_block_options
from quantkit.exporters._hf_config import config_files, native_config, with_dtype
from quantkit.exporters._plain_scales import with_plain_scales
from quantkit.exporters._recorded import measured
from quantkit.exporters._widths import checked_bits
from quantkit.exporters.onnx.elements import ARRAYS, TYPES
from quantkit.exporters.onnx.genai import CONFIG_NAME as GENAI_NAME
from quantkit.exporters.onnx.genai import genai_config
from quantkit.exporters.onnx.graph.builder import check_package
from quantkit.exporters.onnx.graph.decoder import decoder
from quantkit.exporters.onnx.metadata import metadata
from quantkit.exporters.onnx.places import DATA_NAME, Places, data_file, places
from quantkit.exporters.onnx.reading import GRAPH_NAME, read_graph
from quantkit.exporters.onnx.schemes import CHOICES, held
from quantkit.exporters.onnx.settings import CONTAINER, Settings, context_notes, settings_of
from quantkit.files.member import read_member_json
from quantkit.files.planned_files import PlannedArtifact, PlannedTensor, blob
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.context import check_plain_heads
from quantkit.models.folder import read_folder_config
from quantkit.models.folding import with_architecture
from quantkit.models.layouts.small_files import (
    CONFIG_NAME,
    MAX_CONFIG_BYTES,
    check_links,
    config_notes,
    file_names,
    file_notes,
    travelling_files,
)
from quantkit.models.recognition import config_notes as ignored_keys
from quantkit.models.recognition import parse_config
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView
from quantkit.text.companions import with_companions
from quantkit.text.tokenizer_files import TOKENIZER_FILE
from quantkit.text.vocabulary import has_vocabulary

HEAD_CHANNELS = 16
"""What GroupQueryAttention's heads are multiples of."""


class ONNX:
    """See the module's docstring; the attributes are those of `quantkit.protocols.Exporter`."""

    name = CONTAINER
    summary = "ONNX graph with external data, for onnxruntime and onnxruntime-genai"
    types = tuple(TYPES)
    targets = ()
    widths = CHOICES
    engines = ("onnxruntime", "onnxruntime-genai", "onnx-numpy", "reference")
    library = "onnx"

    def recognizes(self, path: Path) -> bool:
        """Whether `path` is a folder with a model.onnx."""
        return (path / GRAPH_NAME).is_file()

    def prepare(self, checkpoint: Checkpoint, options: ExportOptions) -> PlannedArtifact:
        """Plan the folder: the graph, and the data file in units of a block; the graph is made now.

        Raises:
            BadOption: an unknown type, width, architecture or set of operators, or a context of another model.
            UnsupportedSpec: a weight that does not fit; names it.
            MissingDependency: the package `onnx` is not installed.
            Others: see `with_architecture`.
        """
        check_plain_heads(checkpoint, self.name)
        refuse_block_options(options, container=self.name)
        checked_bits(options.bits, self.widths, container=self.name)
        source = with_plain_scales(with_architecture(checkpoint, options.arch))
        settings = settings_of(options, source.spec)
        if settings.contrib and source.spec.head_dim % HEAD_CHANNELS:
            raise UnsupportedSpec(
                f"{checkpoint.path} has heads of {source.spec.head_dim} channels; in onnx GroupQueryAttention takes "
                f"multiples of {HEAD_CHANNELS}",
                hint="write operators of ONNX alone: --ops standard",
            )
        found = held(source, options.bits, standard=not settings.contrib)
        model = found.model
        check_package()
        grids = {
            name: view.scheme
            for name, view in model.weights.items()
            if isinstance(view, QuantizedView) and isinstance(view.scheme, AffineGroups)
        }
        plan = places(model.spec, grids, settings)
        graph = decoder(model.spec, plan, settings, metadata(settings, grids))
        config = with_dtype(native_config(model), ARRAYS[settings.element])
        return PlannedArtifact(
            format=self.name,
            folder=True,
            files=(
                *config_files(model.spec, config),
                *([] if settings.sparse else [blob(GENAI_NAME, genai_config(model, settings, GRAPH_NAME))]),
                blob(GRAPH_NAME, graph.SerializeToString(deterministic=True)),
                data_file(plan, model.weights, model.spec, settings),
                *(blob(name, read()) for name, read in sorted(model.files.items())),
            ),
            tensors=tuple(_planned_tensors(model, plan, settings)),
            options=_recorded(settings, options),
            notes=(*model.notes, *found.notes, *context_notes(model.spec, settings), *_text_notes(model)),
            measure=measured(model, self.read, threads=options.threads),
            stored=found.changed,
        )

    def read(self, path: Path) -> Checkpoint:
        """Open a folder that quantkit wrote; codes are read through the views.

        Raises:
            InconsistentCheckpoint: config.json, genai_config.json and the graph are not of one model.
            Others: see `read_graph` and `with_companions`.
        """
        names = file_names(path)
        config = read_folder_config(path)
        check_links(path, names)
        where = str(path / CONFIG_NAME)
        spec = parse_config(config, where=where)
        settings, weights = read_graph(path, spec)
        own = (GRAPH_NAME, DATA_NAME, *([] if settings.sparse else [GENAI_NAME]))
        checkpoint = with_companions(
            Checkpoint(
                path=path,
                format=self.name,
                config=config,
                spec=spec,
                weights=weights,
                files=travelling_files(path, names),
                inputs=(path / GRAPH_NAME, path / DATA_NAME),
                attention=settings.attention,
                notes=(
                    *config_notes(config),
                    *file_notes(config, [name for name in names if name not in own], ()),
                    *ignored_keys(config, where=where),
                ),
            )
        )
        if not settings.sparse:
            _check_genai(checkpoint, settings)
        return checkpoint


def _text_notes(model: Checkpoint) -> Iterator[str]:
    if has_vocabulary(model) and TOKENIZER_FILE not in model.files:
        yield f"there is no {TOKENIZER_FILE}, without which onnxruntime-genai reads ids alone"


def _recorded(settings: Settings, options: ExportOptions) -> dict[str, object]:
    recorded: dict[str, object] = {
        "type": settings.type, "arch": options.arch, "ops": settings.ops, "context": settings.context,
    }  # fmt: skip
    if settings.sparse:
        recorded["attention"] = settings.attention
    return recorded if options.bits is None else {**recorded, "bits": options.bits}


def _planned_tensors(model: Checkpoint, plan: Places, settings: Settings) -> Iterator[PlannedTensor]:
    for place in plan.weights.values():
        weight, size = model.weights[place.source], sum(extent.size for extent in place.extents.values())
        kind = str(weight.scheme) if isinstance(weight, QuantizedView) else settings.type
        yield PlannedTensor(place.name, kind, weight.shape, size)


def _check_genai(checkpoint: Checkpoint, settings: Settings) -> None:
    """What genai_config.json says of the model, its sessions aside, is what quantkit would write."""

    found = read_member_json(checkpoint.path, GENAI_NAME, limit=MAX_CONFIG_BYTES)
    expected = json.loads(genai_config(checkpoint, settings, GRAPH_NAME))
    for config in (found, expected):
        model = config.get("model")
        if isinstance(model, dict) and isinstance(model.get("decoder"), dict):
            model["decoder"].pop("session_options", None)
    if found.get("model") != expected["model"]:
        raise InconsistentCheckpoint(
            f"{checkpoint.path / GENAI_NAME} describes another model than config.json",
            hint="only what it says of sessions and of search may be changed",
        )


EXPORTER = ONNX()
