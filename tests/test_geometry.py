"""Latent, pixel and chunk arithmetic."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arvid.geometry import check_size, chunk_layout, latent_frames, pixel_frames

sizes = st.integers(1, 12)


@pytest.mark.parametrize(("seconds", "frames"), [(5, 21), (30, 120), (31.5, 126), (0.01, 3), (60, 240)])
def test_latent_frames_of_published_lengths(seconds, frames):
    assert latent_frames(seconds, fps=16, time_stride=4, chunk=3) == frames


@given(st.floats(0.01, 1e4), st.floats(1, 120), sizes, sizes)
def test_latent_frames_are_whole_chunks_nearest_to_the_length(seconds, fps, stride, chunk):
    frames = latent_frames(seconds, fps, stride, chunk)
    assert frames % chunk == 0
    assert frames >= chunk
    wanted = seconds * fps / stride
    assert abs(frames - wanted) <= chunk / 2 * (1 + 1e-9) or (frames == chunk and wanted < chunk)


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan, 1e308])
def test_latent_frames_rejects_impossible_lengths(seconds):
    with pytest.raises(ValueError, match="positive and finite"):
        latent_frames(seconds, fps=16, time_stride=4, chunk=3)


@pytest.mark.parametrize("chunk", [0, -3, 1.5, True])
def test_sizes_are_positive_whole_numbers(chunk):
    with pytest.raises(ValueError, match="chunk="):
        latent_frames(5, fps=16, time_stride=4, chunk=chunk)


def test_pixel_frames_of_a_causal_vae():
    assert [pixel_frames(n, 4) for n in (1, 2, 21)] == [1, 5, 81]
    with pytest.raises(ValueError, match="latent=0"):
        pixel_frames(0, 4)


@given(st.integers(1, 60), sizes, st.integers(0, 8), st.booleans(), st.booleans())
def test_chunk_layout_covers_every_frame_once_in_order(frames, chunk, full_given, alone, first_alone):
    given_frames = full_given * chunk + (alone or (first_alone and full_given > 0))
    given_chunks, new_chunks = chunk_layout(frames, chunk, given_frames, first_alone)
    covered = [start + i for start, n in given_chunks + new_chunks for i in range(n)]
    assert covered == list(range(given_frames + frames))
    assert sum(n for _, n in given_chunks) == given_frames
    lengths = [n for _, n in given_chunks + new_chunks]
    assert max(lengths) <= chunk
    assert all(n == chunk for n in lengths[1:-1])  # only the first may be alone, only the last shorter
    assert not first_alone or lengths[0] == 1


def test_chunk_layout_by_example():
    assert chunk_layout(7, 3) == ((), ((0, 3), (3, 3), (6, 1)))
    assert chunk_layout(6, 3, given=4) == (((0, 1), (1, 3)), ((4, 3), (7, 3)))
    assert chunk_layout(3, 3, given=6) == (((0, 3), (3, 3)), ((6, 3),))
    assert chunk_layout(7, 3, first_alone=True) == ((), ((0, 1), (1, 3), (4, 3)))


@given(st.integers(0, 60), sizes, st.booleans())
def test_a_wrong_count_of_given_frames_names_the_nearest_right_ones(given_frames, chunk, first_alone):
    def valid(n):
        return n == 0 or (n - 1) % chunk == 0 or (n % chunk == 0 and not first_alone)

    if valid(given_frames):
        chunk_layout(1, chunk, given_frames, first_alone)
        return
    below = max(n for n in range(given_frames) if valid(n))
    above = min(n for n in range(given_frames, given_frames + chunk + 1) if valid(n))
    with pytest.raises(ValueError, match=f"{given_frames} given frames .* such as {below} or {above}$"):
        chunk_layout(1, chunk, given_frames, first_alone)


@pytest.mark.parametrize("bad", [{"frames": 0, "chunk": 3}, {"frames": 3, "chunk": 0},
                                 {"frames": 3, "chunk": 3, "given": -1}])
def test_chunk_layout_rejects_counts_that_cannot_be(bad):
    with pytest.raises(ValueError, match="must be a whole number"):
        chunk_layout(**bad)


@given(sizes, sizes, sizes, sizes, sizes)
def test_check_size_accepts_exactly_whole_patches(rows, columns, stride, patch_height, patch_width):
    height, width = rows * stride * patch_height, columns * stride * patch_width
    assert check_size(height, width, stride, (1, patch_height, patch_width)) == (rows * patch_height,
                                                                                columns * patch_width)


def test_check_size_names_the_multiple_and_the_nearest_sizes_of_every_wrong_side():
    with pytest.raises(ValueError, match="height=70 must be a positive multiple of 16: use 64 or 80") as error:
        check_size(70, 9, 8, (2, 2))
    assert "width=9 must be a positive multiple of 16: use 16" in str(error.value)
    with pytest.raises(ValueError, match="width=0"):
        check_size(64, 0, 8, (2, 2))
