"""`AffineGroups`: what it admits, what it derives, and its JSON form."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.errors import UnsupportedSpec
from quantkit.tensors.scheme import SCALE_DTYPES, scheme_from_json
from quantkit.tensors.schemes.affine_groups import AffineGroups

SPECS = st.builds(
    AffineGroups,
    bits=st.integers(2, 8),
    group_size=st.sampled_from([-1, 1, 32, 64, 128]),
    symmetric=st.booleans(),
    scale_dtype=st.sampled_from(sorted(SCALE_DTYPES)),
)


@given(SPECS)
def test_a_scheme_survives_json(spec: AffineGroups) -> None:
    assert scheme_from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_the_json_form_names_every_choice() -> None:
    assert AffineGroups(bits=4, group_size=128).to_json() == {
        "bits": 4,
        "group_size": 128,
        "symmetric": True,
        "scale_dtype": "float16",
    }


@pytest.mark.parametrize("bits", range(2, 9))
def test_levels_and_midpoint_follow_the_bits(bits: int) -> None:
    spec = AffineGroups(bits=bits, group_size=32)
    assert (spec.levels, spec.midpoint) == {
        2: (4, 2), 3: (8, 4), 4: (16, 8), 5: (32, 16), 6: (64, 32), 7: (128, 64), 8: (256, 128),
    }[bits]  # fmt: skip


def test_groups_count_whole_groups_per_row() -> None:
    assert AffineGroups(bits=4, group_size=32).groups(256) == 8
    assert AffineGroups(bits=4, group_size=-1).groups(257) == 1
    assert AffineGroups(bits=4, group_size=-1).group_width(257) == 257


def test_a_width_that_groups_do_not_divide_is_refused_by_name() -> None:
    with pytest.raises(
        UnsupportedSpec, match=r"down_proj: 5760 columns are not a multiple of group_size 256"
    ) as refusal:
        AffineGroups(bits=4, group_size=256).groups(5760, name="down_proj")
    assert refusal.value.hint is not None


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"bits": 1}, "bits must be from 2 to 8, is 1"),
        ({"bits": 9}, "bits must be from 2 to 8, is 9"),
        ({"group_size": 0}, "group_size must be from 1 to 16,777,216, or -1"),
        ({"group_size": -2}, "group_size must be from 1 to 16,777,216, or -1"),
        ({"scale_dtype": "float64"}, "scale_dtype must be one of"),
    ],
)
def test_a_meaningless_spec_is_refused(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(UnsupportedSpec, match=complaint):
        scheme_from_json({"bits": 4, "group_size": 128, **changes})


def test_a_spec_cannot_be_changed_and_reads_well() -> None:
    spec = AffineGroups(bits=4, group_size=128)
    with pytest.raises(FrozenInstanceError):
        spec.bits = 8  # type: ignore[misc]
    assert str(spec) == "int4 g128 sym"
    assert str(AffineGroups(bits=3, group_size=-1, symmetric=False)) == "int3 row asym"
