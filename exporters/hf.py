"""A dense Hugging Face folder: what transformers loads, and what every other tool starts from.

    config.json                    the source's own, defaults spoken out; or the folded Llama's
    configuration_minicpm.py       beside the former: the config class, which vLLM needs
    model.safetensors              every weight in one float dtype, [out, in] row by row, in the order of the forward
                                   pass; or shards model-0000I-of-0000N.safetensors and model.safetensors.index.json
    tokenizer*, *.jinja, ...       as they were

Types: bf16, f16, f32. A quantized weight is written as the values that it stands for, rounded once to that type; where
that changes any, the manifest's figure `ROUNDED` says by how much of a value at most. Ternary weights whose scales are
bfloat16 are exact in bf16: so BitCPM's own checkpoints hold them.
"""

from __future__ import annotations

from pathlib import Path

from quantkit.errors import BadOption, QuantkitError
from quantkit.exporters._dense_folder import plan_dense_folder
from quantkit.exporters._graph_options import refuse_block_options, refuse_graph_options
from quantkit.exporters._hf_folder import read_checkpoint
from quantkit.exporters._mlx_mark import is_mlx
from quantkit.exporters._widths import checked_bits
from quantkit.files.planned_files import PlannedArtifact
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folder import open_folder, read_folder_config
from quantkit.models.layouts.quantizers import refuse_quantized
from quantkit.models.layouts.small_files import CONFIG_NAME, file_names
from quantkit.models.recognition import parse_config
from quantkit.protocols import ExportOptions
from quantkit.tensors.cast import FLOATS


class HuggingFace:
    """See the module's docstring; the attributes are those of `quantkit.protocols.Exporter`."""

    name = "hf"
    summary = "Hugging Face folder with dense weights"
    types = tuple(FLOATS)
    targets = ()
    widths = ()
    engines = ("transformers", "vllm", "reference")
    library = "transformers"

    def recognizes(self, path: Path) -> bool:
        """Whether `path` is a folder with weights that no `quantization_config` describes, and not one of MLX.

        A folder whose config cannot be read, or that holds pickles only, is recognized as well, because `read`
        says best what is wrong with it.
        """
        try:
            names = file_names(path)
        except BadOption:
            return False
        if not any(name.endswith((".safetensors", ".safetensors.index.json")) or _is_pickle(name) for name in names):
            return False
        try:
            config = read_folder_config(path)
        except QuantkitError:
            return True
        return not config.get("quantization_config") and not is_mlx(path)

    def prepare(self, checkpoint: Checkpoint, options: ExportOptions) -> PlannedArtifact:
        """Plan the folder: one unit per tensor.

        Without a type, dense sources keep the dtype of each tensor and quantized ones become bf16.

        Raises:
            BadOption: an unknown type or architecture, or a width.
        """
        refuse_block_options(options, container=self.name)
        refuse_graph_options(options, container=self.name)
        checked_bits(options.bits, self.widths, container=self.name)
        return plan_dense_folder(
            checkpoint, type_name=options.type, arch=options.arch, container=self.name, read=self.read
        )

    def read(self, path: Path) -> Checkpoint:
        """Open a dense folder, ours or another's.

        Raises:
            UnsupportedModel: the config, or a tensor, says that the weights are quantized.
            IncompleteCheckpoint, InconsistentCheckpoint and others: see `open_folder` and `read_checkpoint`.
        """
        folder = open_folder(path)
        refuse_quantized(folder.config, folder.tensors, str(path))
        spec = parse_config(folder.config, where=str(path / CONFIG_NAME))
        wanted = {slot.name for slot in spec.slots()}
        unused = [name for name in folder.tensors if name not in wanted]
        surplus = (f"{len(unused)} tensors add nothing and are left out: {', '.join(unused)[:80]}",) if unused else ()
        return read_checkpoint(folder, spec, folder.tensors, container=self.name, notes=surplus)


def _is_pickle(name: str) -> bool:
    return name.startswith("pytorch_model") and name.endswith(".bin")


EXPORTER = HuggingFace()
