"""Everything that can go wrong, one class per cause.

Every error that a user can cause is a `QuantkitError`. Its message is one line that says *what* is wrong and
*where*; `hint` says how to mend it. The command line prints `error: MESSAGE` and `hint: HINT` and exits with
`exit_code`. Anything else that escapes is a bug in quantkit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sized
from contextlib import contextmanager
from difflib import get_close_matches

MAX_MESSAGE = 500
"""Characters of a message or a hint: names and values in it come from strangers' files."""
NEAR = 0.6
"""How alike two words must be, 0 to 1, for one to be what the other was meant to be."""


class QuantkitError(Exception):
    """Base of all errors that have a cause outside quantkit; both texts are made `one_line`.

    Args:
        message: one line, what is wrong and where, no full stop.
        hint: one line, how to mend it, or None when there is nothing to advise.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(one_line(message))
        self.hint = one_line(hint) if hint is not None else None


def one_line(text: str) -> str:
    """`text` escaped, and cut in the middle to `MAX_MESSAGE` characters: where stands at its start, why at its end."""
    half = MAX_MESSAGE // 2
    line = escaped(text if len(text) <= MAX_MESSAGE else f"{text[:half]} ... {text[-half:]}")
    return line if len(line) <= MAX_MESSAGE else f"{line[: half - 3]} ... {line[2 - half :]}"


def and_more(items: Sized) -> str:
    """What follows the first of `items` in a message: " and 2 more", nothing after the only one."""
    return f" and {len(items) - 1} more" if len(items) > 1 else ""


def escaped(text: str) -> str:
    """Return `text` on one line with control characters shown, so that a hostile name cannot drive a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


@contextmanager
def about(name: str) -> Iterator[None]:
    """Put `name` in front of the message of a `QuantkitError` that is raised within."""
    try:
        yield
    except QuantkitError as error:
        raise type(error)(f"{name}: {error}", hint=error.hint) from None


class BadOption(QuantkitError):
    """An option, or a combination of options, that means nothing."""


def chosen(word: str, choices: Collection[str], *, problem: str, called: str = "choose one of") -> str:
    """The one of `choices` that `word` is, in any case and with `_` or `-` alike.

    Args:
        word: what the user wrote.
        choices: every word that there is.
        problem: the message where there is no such word.
        called: what the choices are, in front of their list.

    Raises:
        BadOption: there is none; the hint begins with the nearest.
    """
    known = {_folded(choice): choice for choice in choices}
    found = known.get(_folded(word))
    if found is not None:
        return found
    near = nearest(word, choices)
    raise BadOption(
        problem, hint=(f"did you mean {near}? " if near else "") + f"{called}: {', '.join(choices) or 'none'}"
    )


def nearest(word: str, choices: Collection[str]) -> str | None:
    """The one of `choices` that is most like `word`; None where none is much like it."""
    known = {_folded(choice): choice for choice in choices}
    found = get_close_matches(_folded(word[:80]), known, n=1, cutoff=NEAR)
    return known[found[0]] if found else None


def _folded(word: str) -> str:
    return word.lower().replace("_", "-")


class MalformedFile(QuantkitError):
    """Bytes that break the rules of their format (headers, JSON, offsets, names)."""


class IncompleteFile(MalformedFile):
    """A file that ends before what its header promises: an unfinished download."""


class IncompleteCheckpoint(QuantkitError):
    """A folder that lacks a shard, a tensor or a file that the model needs."""


class InconsistentCheckpoint(QuantkitError):
    """Files that contradict each other: config against weights, index against shards."""


class UnsafePath(QuantkitError):
    """A name inside a file that would lead out of the model's folder."""


class BadConfig(QuantkitError):
    """A config value outside its range, or of the wrong type."""


class UnsupportedModel(QuantkitError):
    """A model family, layer type or tokenizer that quantkit does not know."""


class UnsupportedSpec(QuantkitError):
    """A quantization that a container, an engine or a method cannot hold; nothing was written."""


class NonFiniteValues(QuantkitError):
    """NaN or infinity in a tensor."""


class ValueOutOfRange(QuantkitError):
    """A finite value that the target dtype cannot hold (bfloat16 beyond float16's 65504)."""


class OutputExists(QuantkitError):
    """The output name is taken, or is the input itself."""


class NoSpace(QuantkitError):
    """The disk cannot hold the planned output."""


class WriteFailed(QuantkitError):
    """The operating system refused a write, or what was read back differs from what was written."""


class ReadFailed(QuantkitError):
    """The operating system refused to let us read an input file."""


class SourceChanged(QuantkitError):
    """An input file changed while it was read."""


class MissingDependency(QuantkitError):
    """A Python package that this command needs is not installed."""


class TrainingDiverged(QuantkitError):
    """A training whose loss is no number any more, or worse than guessing."""


class EngineFailed(QuantkitError):
    """An inference engine refused the artifact or died."""


class GoldenMismatch(QuantkitError):
    """A golden file that does not belong to this model, or is of another version."""


class VerificationFailed(QuantkitError):
    """The artifact is not the model that it claims to be."""

    exit_code = 1


class Interrupted(QuantkitError):
    """The user stopped the work (SIGINT, SIGTERM); nothing was published."""

    exit_code = 130
