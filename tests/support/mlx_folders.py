"""Models as MLX folders: exported by quantkit, and as mlx-lm writes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions

CONVERT = """
import sys
from mlx_lm.convert import convert
source, out, settings, predicate = sys.argv[1], sys.argv[2], eval(sys.argv[3]), eval(sys.argv[4])
convert(source, out, quantize=bool(settings), quant_predicate=predicate, **settings)
"""


def exported(checkpoint: Checkpoint, out: Path, options: ExportOptions | None = None, container: str = "mlx") -> Path:
    """`checkpoint` as a folder of `container`."""
    return publish(registry.exporter(container).prepare(checkpoint, options or ExportOptions()), out).path


def converted(source: Path, out: Path, settings: dict[str, Any], predicate: str = "None") -> Path:
    """The folder that `mlx_lm.convert` makes of the dense folder `source`, offline."""
    command = [sys.executable, "-c", CONVERT, str(source), str(out), repr(settings), predicate]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return out
