"""quantkit: MiniCPM models in every form that a device can run, each proved to still be the model.

What stands in `__all__` is the public interface, and all that the command line calls. It is imported when it is used:
`import quantkit` alone reads no other module.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # as type checkers read it; typing would be imported for nothing else

if TYPE_CHECKING:
    from quantkit.artifacts.leftovers import leftovers as leftovers
    from quantkit.artifacts.provenance import Provenance as Provenance
    from quantkit.artifacts.provenance import provenance as provenance
    from quantkit.artifacts.publishing import Published as Published
    from quantkit.calibration.compute import Compute as Compute
    from quantkit.calibration.samples import CalibrationFile as CalibrationFile
    from quantkit.calibration.samples import CalibrationOptions as CalibrationOptions
    from quantkit.errors import QuantkitError as QuantkitError
    from quantkit.models.checkpoint import Checkpoint as Checkpoint
    from quantkit.models.inspection import inspection as inspection
    from quantkit.pipeline.card.planned import model_card as model_card
    from quantkit.pipeline.importance import measure_importance as measure_importance
    from quantkit.pipeline.mixtures.runs import export_to_size as export_to_size
    from quantkit.pipeline.mixtures.runs import quantize_to_size as quantize_to_size
    from quantkit.pipeline.mixtures.runs import reachable_sizes as reachable_sizes
    from quantkit.pipeline.mixtures.size import TargetSize as TargetSize
    from quantkit.pipeline.options import QuantizeOptions as QuantizeOptions
    from quantkit.pipeline.planning.plan import Plan as Plan
    from quantkit.pipeline.planning.plan import plan as plan
    from quantkit.pipeline.planning.recommendation import every_target as every_target
    from quantkit.pipeline.planning.target import Target as Target
    from quantkit.pipeline.planning.target import parse_target as parse_target
    from quantkit.pipeline.planning.verdicts import loads_in as loads_in
    from quantkit.pipeline.recipe import Recipe as Recipe
    from quantkit.pipeline.recovery.runs import recover as recover
    from quantkit.pipeline.runs import export as export
    from quantkit.pipeline.runs import export_calibrated as export_calibrated
    from quantkit.pipeline.runs import quantize as quantize
    from quantkit.protocols import ExportOptions as ExportOptions
    from quantkit.registry import containers as containers
    from quantkit.registry import default_scheme as default_scheme
    from quantkit.registry import engines as engines
    from quantkit.registry import names as names
    from quantkit.registry import open_checkpoint as open_checkpoint
    from quantkit.tensors.block_options import BlockOptions as BlockOptions
    from quantkit.tensors.scheme import Scheme as Scheme
    from quantkit.tensors.schemes.affine_groups import AffineGroups as AffineGroups
    from quantkit.tensors.schemes.offset_groups import OffsetGroups as OffsetGroups
    from quantkit.text.chat_template import ChatOptions as ChatOptions
    from quantkit.training.curve import write_loss_picture as write_loss_picture
    from quantkit.training.options import TrainingOptions as TrainingOptions
    from quantkit.verification.continuation import Continuation as Continuation
    from quantkit.verification.continuation import Sampling as Sampling
    from quantkit.verification.continuation import generate as generate
    from quantkit.verification.evaluation.evaluation import evaluate as evaluate
    from quantkit.verification.evaluation.figures import Evaluation as Evaluation
    from quantkit.verification.golden import Golden as Golden
    from quantkit.verification.golden import read_golden as read_golden
    from quantkit.verification.page.facts import ReportedArtifact as ReportedArtifact
    from quantkit.verification.page.writing import report_page as report_page
    from quantkit.verification.proof import verify as verify
    from quantkit.verification.recording import record_golden as record_golden
    from quantkit.verification.report import Report as Report
    from quantkit.verification.speed import Speed as Speed
    from quantkit.verification.speed import bench as bench

__version__ = "0.1.0"

# In a bare checkout `exporters/` and `runtimes/` lie beside this folder; installed, they lie inside it.
if os.path.isfile(os.path.join(os.path.dirname(os.path.dirname(__file__)), "pyproject.toml")):  # noqa: PTH113,PTH118,PTH120
    __path__.append(os.path.dirname(os.path.dirname(__file__)))  # noqa: PTH120 - pathlib takes 5 ms to import

_HOMES = {
    "AffineGroups": "tensors.schemes.affine_groups",
    "BlockOptions": "tensors.block_options",
    "CalibrationFile": "calibration.samples",
    "CalibrationOptions": "calibration.samples",
    "ChatOptions": "text.chat_template",
    "Checkpoint": "models.checkpoint",
    "Compute": "calibration.compute",
    "Continuation": "verification.continuation",
    "Evaluation": "verification.evaluation.figures",
    "ExportOptions": "protocols",
    "Golden": "verification.golden",
    "OffsetGroups": "tensors.schemes.offset_groups",
    "Plan": "pipeline.planning.plan",
    "Provenance": "artifacts.provenance",
    "Published": "artifacts.publishing",
    "QuantizeOptions": "pipeline.options",
    "QuantkitError": "errors",
    "Recipe": "pipeline.recipe",
    "Report": "verification.report",
    "ReportedArtifact": "verification.page.facts",
    "Sampling": "verification.continuation",
    "Scheme": "tensors.scheme",
    "Speed": "verification.speed",
    "Target": "pipeline.planning.target",
    "TargetSize": "pipeline.mixtures.size",
    "TrainingOptions": "training.options",
    "bench": "verification.speed",
    "containers": "registry",
    "default_scheme": "registry",
    "engines": "registry",
    "evaluate": "verification.evaluation.evaluation",
    "every_target": "pipeline.planning.recommendation",
    "export": "pipeline.runs",
    "export_calibrated": "pipeline.runs",
    "export_to_size": "pipeline.mixtures.runs",
    "generate": "verification.continuation",
    "inspection": "models.inspection",
    "leftovers": "artifacts.leftovers",
    "loads_in": "pipeline.planning.verdicts",
    "measure_importance": "pipeline.importance",
    "model_card": "pipeline.card.planned",
    "names": "registry",
    "open_checkpoint": "registry",
    "parse_target": "pipeline.planning.target",
    "plan": "pipeline.planning.plan",
    "provenance": "artifacts.provenance",
    "quantize": "pipeline.runs",
    "quantize_to_size": "pipeline.mixtures.runs",
    "reachable_sizes": "pipeline.mixtures.runs",
    "read_golden": "verification.golden",
    "record_golden": "verification.recording",
    "recover": "pipeline.recovery.runs",
    "report_page": "verification.page.writing",
    "verify": "verification.proof",
    "write_loss_picture": "training.curve",
}
"""Public name to the module that it lives in."""

__all__ = [
    "AffineGroups",
    "BlockOptions",
    "CalibrationFile",
    "CalibrationOptions",
    "ChatOptions",
    "Checkpoint",
    "Compute",
    "Continuation",
    "Evaluation",
    "ExportOptions",
    "Golden",
    "OffsetGroups",
    "Plan",
    "Provenance",
    "Published",
    "QuantizeOptions",
    "QuantkitError",
    "Recipe",
    "Report",
    "ReportedArtifact",
    "Sampling",
    "Scheme",
    "Speed",
    "Target",
    "TargetSize",
    "TrainingOptions",
    "bench",
    "containers",
    "default_scheme",
    "engines",
    "evaluate",
    "every_target",
    "export",
    "export_calibrated",
    "export_to_size",
    "generate",
    "inspection",
    "leftovers",
    "loads_in",
    "measure_importance",
    "model_card",
    "names",
    "open_checkpoint",
    "parse_target",
    "plan",
    "provenance",
    "quantize",
    "quantize_to_size",
    "reachable_sizes",
    "read_golden",
    "record_golden",
    "recover",
    "report_page",
    "verify",
    "write_loss_picture",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'quantkit' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - `import quantkit` alone is quick

    return getattr(import_module(f"quantkit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
