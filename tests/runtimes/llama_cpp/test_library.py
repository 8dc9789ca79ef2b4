"""The C API is trusted only where its structs are the ones that are known."""

from __future__ import annotations

import ctypes

import pytest

from quantkit.runtimes.llama_cpp import library
from quantkit.runtimes.llama_cpp.library import (
    CONTEXT_DEFAULTS,
    MODEL_DEFAULTS,
    ROOM,
    Batch,
    ContextParams,
    ModelParams,
    UnknownLayout,
    check_batch,
    check_defaults,
)

STRUCTS = ((ModelParams, MODEL_DEFAULTS), (ContextParams, CONTEXT_DEFAULTS))
FIELDS = [(kind, defaults, field[0]) for kind, defaults in STRUCTS for field in kind._fields_ if field[0] != "room"]


def default_params(kind, defaults):
    params = kind()
    for name, value in defaults.items():
        setattr(params, name, value)
    return params


@pytest.mark.parametrize(("kind", "defaults"), STRUCTS)
def test_the_known_defaults_pass(kind, defaults):
    check_defaults(default_params(kind, defaults), defaults)


@pytest.mark.parametrize(("kind", "defaults", "name"), FIELDS)
def test_one_other_default_is_refused_by_name(kind, defaults, name):
    params = default_params(kind, defaults)
    setattr(params, name, 77)
    with pytest.raises(UnknownLayout, match=rf"{kind.__name__}\.{name} is 77"):
        check_defaults(params, defaults)


@pytest.mark.parametrize(("kind", "defaults"), STRUCTS)
@pytest.mark.parametrize("width", [4, 8])
def test_a_field_that_a_release_inserts_is_noticed_wherever_it_shifts_another(kind, defaults, width):
    """A new field moves all that follow; where only null pointers follow, nothing that we read or set has moved."""
    known = bytes(default_params(kind, defaults))[: kind.room.offset]
    last = max(getattr(kind, name).offset for name in defaults)
    for at in range(0, last + 1, width):
        moved = known[:at] + bytes(width) + known[at:] + bytes(ROOM - width)
        with pytest.raises(UnknownLayout):
            check_defaults(kind.from_buffer_copy(moved.ljust(ctypes.sizeof(kind), b"\0")), defaults)


def test_a_batch_that_keeps_its_tokens_elsewhere_is_refused():
    check_batch(lambda tokens, count: Batch(n_tokens=count, token=tokens))
    for other in (Batch(n_tokens=3), Batch(n_tokens=4), Batch(n_tokens=3, embd=1)):
        with pytest.raises(UnknownLayout, match="llama_batch"):
            check_batch(lambda tokens, count, other=other: other)


def test_a_package_without_the_library_or_with_another_file_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "library_path", lambda: None)
    with pytest.raises(UnknownLayout, match="no shared library"):
        library.load_library()
    (tmp_path / "other.so").write_text("no library")
    monkeypatch.setattr(library, "library_path", lambda: str(tmp_path / "other.so"))
    with pytest.raises(UnknownLayout, match="cannot be reached"):
        library.load_library()
