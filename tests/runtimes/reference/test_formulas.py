"""The formulas of the forward pass against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np

from quantkit.models.architectures._rope_spec import RopeSpec
from quantkit.runtimes.reference.formulas import attend, rms_norm, rope_angles, rotate, round_to_int8, silu, softmax
from quantkit.tensors.scheme import PER_ROW


def test_rope_turns_the_first_pair_by_its_position_and_later_pairs_slower():
    rope = RopeSpec(theta=100.0, kind="default")
    angles = rope_angles(np.array([0, 1, 7]), rope, 4, 8)
    # theta^(-2i/D) for D = 4: 1 and 1/10.
    np.testing.assert_allclose(angles, [[0, 0], [1, 0.1], [7, 0.7]], rtol=1e-6)


def test_longrope_divides_the_angles_by_the_factors_of_the_context():
    rope = RopeSpec(
        theta=100.0,
        kind="longrope",
        short_factor=(1.0, 2.0),
        long_factor=(4.0, 5.0),
        original_max_position_embeddings=10,
    )
    np.testing.assert_allclose(rope_angles(np.array([8]), rope, 4, 10), [[8, 0.4]], rtol=1e-6)
    np.testing.assert_allclose(rope_angles(np.array([8]), rope, 4, 11), [[2, 0.16]], rtol=1e-6)


def test_rotation_pairs_a_channel_with_the_one_half_a_head_away():
    x = np.array([[[1.0, 2.0, 0.0, 0.0]]], np.float32)
    quarter = np.array([[math.pi / 2, 0.0]], np.float32)
    np.testing.assert_allclose(rotate(x, np.cos(quarter), np.sin(quarter)), [[[0, 2, 1, 0]]], atol=1e-7)


def test_attention_of_a_single_position_returns_its_value():
    q, k, v = (np.arange(8, dtype=np.float32).reshape(2, 1, 4) + i for i in range(3))
    np.testing.assert_array_equal(attend(q, k, v), v.reshape(1, 8))


def test_attention_with_equal_keys_is_the_mean_of_the_values_so_far():
    q = np.ones((2, 3, 4), np.float32)
    v = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    expected = np.stack([v[0, : t + 1].mean(axis=0) for t in range(3)])
    np.testing.assert_allclose(attend(q, np.ones((1, 3, 4), np.float32), v), np.tile(expected, 2), rtol=1e-6)


def test_each_query_head_reads_the_key_value_head_of_its_group():
    v = np.stack([np.full((1, 2), head, np.float32) for head in range(2)])  # (2, 1, 2)
    mixed = attend(np.ones((6, 1, 2), np.float32), np.ones((2, 1, 2), np.float32), v)
    np.testing.assert_array_equal(mixed.reshape(6, 2)[:, 0], [0, 0, 0, 1, 1, 1])


def test_the_small_functions_have_their_textbook_values():
    # sqrt(mean(9, 16)) = 5 / sqrt(2)
    normed = rms_norm(np.array([[3.0, 4.0]]), np.array([1.0, 2.0]), 0.0)
    np.testing.assert_allclose(normed, np.sqrt(2) * np.array([[0.6, 1.6]]), rtol=1e-6)
    np.testing.assert_allclose(softmax(np.log(np.array([1.0, 3.0]))), [0.25, 0.75])
    np.testing.assert_allclose(silu(np.array([0.0, math.log(3.0), -1e9])), [0, 0.75 * math.log(3.0), 0], atol=1e-12)


def test_rounding_to_int8_gives_each_run_of_32_its_own_scale():
    x = np.zeros((1, 64), np.float32)
    x[0, :4] = [127, 1.4, 1.6, -127]  # scale 1
    x[0, 32:35] = [254, 3, -1.2]  # scale 2
    rounded = round_to_int8(x, 32)
    np.testing.assert_array_equal(rounded[0, :4], [127, 1, 2, -127])
    np.testing.assert_array_equal(rounded[0, 32:35], [254, 4, -2])
    assert not rounded[0, 4:32].any()


def test_rounding_to_int8_gives_longer_runs_one_scale_and_rows_of_no_whole_runs_one():
    x = np.zeros((1, 512), np.float32)
    places = [0, 1, 255, 256, 257]
    x[0, places] = [127, 1.4, 0.6, 254, 3]
    np.testing.assert_array_equal(round_to_int8(x, 256)[0, places], [127, 1, 1, 254, 4])  # scales 1 and 2
    for one in (round_to_int8(x[:, :384], 256), round_to_int8(x, PER_ROW)):
        np.testing.assert_array_equal(one[0, places], [128, 2, 0, 254, 4])  # scale 2 for all


def test_later_queries_attend_as_if_the_earlier_ones_were_asked_too():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((heads, 9, 4)).astype(np.float32) for heads in (6, 2, 2))
    whole = attend(q, k, v)
    np.testing.assert_allclose(attend(q[:, 5:], k, v), whole[5:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(attend(q[:, :5], k[:, :5], v[:, :5]), whole[:5], rtol=1e-5, atol=1e-6)


def test_rounding_to_int8_loses_no_nan_and_no_zero():
    x = np.zeros((2, 32), np.float32)
    x[0, 3] = np.nan
    rounded = round_to_int8(x, 32)
    assert np.isnan(rounded[0]).all()
    assert not rounded[1].any()
    assert not round_to_int8(np.full((1, 32), 1e-9, np.float32), 32).any()  # a scale that float16 rounds to zero
