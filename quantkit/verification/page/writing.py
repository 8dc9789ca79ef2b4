"""Verify artifacts and write what was found as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantkit.artifacts.plain_file import check_free, write_plain
from quantkit.errors import BadOption
from quantkit.progress import Progress, StagedWork
from quantkit.verification.golden import Golden, read_golden
from quantkit.verification.page.document import GENERATOR, document
from quantkit.verification.page.facts import ReportedArtifact, subject
from quantkit.verification.proof import verify


def report_page(
    artifacts: Sequence[str | Path],
    out: str | Path,
    *,
    golden: str | Path | Golden | None = None,
    against: str | Path | None = None,
    engine: str = "auto",
    prompts: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[ReportedArtifact, ...]:
    """Verify artifacts, and write what was found as one HTML page that loads nothing.

    The page has KL and the share of equal most likely tokens of each prompt, the error of each layer that the manifest
    has, and size against KL where there are several artifacts; and all reports as JSON.

    Args:
        artifacts: folders and single files, made of one original.
        out: the page to make.
        golden, against, engine, prompts: as for `verify`, for each of them.
        overwrite: replace what lies at `out`, if it is such a page.
        progress: told how much of the work is done.

    Returns:
        What was found, in the order of `artifacts`. The page is written whether or not they passed.

    Raises:
        BadOption: no artifact, or the same twice. OutputExists, WriteFailed, NoSpace: the page cannot be written there.
        What `verify` raises.
    """
    paths, page = [Path(artifact) for artifact in artifacts], Path(out)
    if not paths:
        raise BadOption("there is no artifact to report on", hint="name one or several")
    twice = [str(path) for number, path in enumerate(paths) if path in paths[:number]]
    if twice:
        raise BadOption(f"{twice[0]} is named twice", hint="name each artifact once")
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise BadOption(f"{missing[0]} does not exist")
    check_free(page, overwrite=overwrite, ours=lambda head: f'content="{GENERATOR}'.encode() in head)
    recorded = read_golden(Path(golden)) if isinstance(golden, (str, Path)) else golden
    work = StagedWork(progress, {str(path): 1.0 for path in paths})
    reports = tuple(
        verify(path, golden=recorded, against=against, engine=engine, prompts=prompts, progress=work.stage(str(path)))
        for path in paths
    )
    first = 1 if len(paths) > 1 else 0
    found = tuple(
        subject(number, path, report) for number, (path, report) in enumerate(zip(paths, reports, strict=True), first)
    )
    original = against if against is not None else golden if isinstance(golden, (str, Path)) else None
    compared_with = Path(original).name if original is not None else "its original" if recorded is not None else None
    write_plain(page, document(found, compared_with).encode(), overwrite=overwrite)
    return found
