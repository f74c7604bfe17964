"""Videos that begin with given frames: an image, a clip, latents; and streams that stop and go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from random_model import BLUE, CARD, RED

from arvid import Pipeline, PipelineConfig, Video
from arvid.cache import CACHE, Chunk
from arvid.models.dit import CausalDiT
from arvid.models.vae import WanVAE
from arvid.pipeline import KeyedNoise, State
from arvid.samplers import DiffusionForcing, FewStep, Hierarchical, Multistep, RollingForcing, Sampler

FULL = 9  # latent frames: an image, then four chunks of 2
SAMPLERS: dict[str, Sampler] = {
    "few_step": FewStep((1000, 500), 3.0, 0.0),
    "renoised": FewStep((1000, 500), 3.0, 100.0, context_renoise=True),
    "multistep": Multistep("unipc", 2, 3.0, 2.5, 0.0),
    "rolling_forcing": RollingForcing((1000, 500), 3.0, 0.0),
    "hierarchical": Hierarchical((1000, 500), 3.0, 0.0),
    "diffusion_forcing": DiffusionForcing("dpm++", 4, 3.0, 1.0, 0.0, ar_step=2),
}
SMALL_PARTICIPATIVE = {"name": "participative", "window": 6, "sink": 1, "recent": 3, "budget": 5}
SIMPLE = ("few_step", "renoised", "multistep")  # whose chunks are all done with when they are emitted


def pixels(frames: int, seed: int = 0, height: int = 16, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


def with_(pipe: Pipeline, **choices: Any) -> Pipeline:
    config = PipelineConfig(**{"cache": {"name": "window", "window": 8}, **choices})
    return Pipeline.from_parts(pipe.dit, config, pipe.vae, pipe.text, CARD)


def joined(pieces: Sequence[Video]) -> np.ndarray:
    return np.concatenate([piece.frames for piece in pieces])


# Given frames


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("frames", [1, 5, 9, 13])  # latent: 1, 2, 3, 4
def test_given_pixels_come_first_bit_for_bit(pipe: Pipeline, name: str, frames: int) -> None:
    own, clip = with_(pipe, sampler=SAMPLERS[name]), Video(pixels(frames), CARD.fps)
    pieces = list(own.stream(RED, frames=3, start=clip))
    video = joined(pieces)
    latent = 1 + (frames - 1) // 4
    assert len(video) == 1 + 4 * (latent + 3 - 1)
    assert np.array_equal(video[:frames], clip.frames)
    assert len(pieces[0]) == (1 if latent % 2 else 5)
    assert np.array_equal(own(RED, frames=3, start=clip).frames, video)
    assert not np.array_equal(own(RED, frames=3, start=Video(pixels(frames, 1), CARD.fps)).frames[frames:],
                              video[frames:])  # fmt: skip


@pytest.mark.parametrize("name", SAMPLERS)
def test_given_frames_are_held_in_every_history_at_the_context_level(pipe: Pipeline, name: str) -> None:
    sampler = replace(SAMPLERS[name], context_noise=100.0)  # pyright: ignore
    start = torch.randn(1, 3, 4, 2, 4, generator=torch.Generator().manual_seed(0))
    stream = with_(pipe, sampler=sampler).stream(RED, frames=2, start=start)
    assert [len(next(stream)) for _ in range(2)] == [1, 8]
    books = stream.state().history.store.books
    assert set(books) == {(lane, branch) for lane in range(sampler.lanes) for branch in range(sampler.branches)}
    for book in books.values():
        chunks = {frame: place.chunk for frame, place in book.places.items()}
        assert chunks == {0: Chunk(0, 1, 0.1, 0), 1: Chunk(1, 2, 0.1, 1), 2: Chunk(1, 2, 0.1, 1)}
        kept = torch.stack([book.latents[frame] for frame in range(3)], 1)
        assert kept.equal(start) == (name != "renoised")


@pytest.mark.parametrize("name", SIMPLE)
@pytest.mark.parametrize(("first", "rest"), [(2, 6), (8, 3)])
def test_continuing_is_the_uninterrupted_run(pipe: Pipeline, name: str, first: int, rest: int) -> None:
    """Latents of a first part, whose every chunk is committed again: the same for a window that has lost some."""
    caches = ("full", {"name": "window", "window": 6}, {"name": "sink", "window": 6, "sink": 1},
              {"name": "rolling", "window": 6})  # fmt: skip
    for cache in caches:
        own = with_(pipe, sampler=SAMPLERS[name], cache=cache)
        whole = own.latents(prompt=RED, frames=first + rest, seed=5)
        again = own.latents(prompt=RED, frames=rest, seed=5, start=whole[:, :first])
        assert again.equal(whole)
        assert not own.latents(prompt=RED, frames=rest, seed=6, start=whole[:, :first]).equal(whole)


def test_continued_pixels_are_those_of_the_uninterrupted_run(pipe: Pipeline) -> None:
    whole = pipe(RED, frames=7, seed=5)
    start = pipe.latents(prompt=RED, frames=4, seed=5)
    again = pipe(RED, frames=3, seed=5, start=start)
    assert np.array_equal(again.frames, whole.frames)


def test_an_image_is_a_chunk_of_its_own(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed, and the noise of what follows, have the frame numbers of the video."""
    asked: list[tuple[int, int, int]] = []
    initial = KeyedNoise.initial
    monkeypatch.setattr(KeyedNoise, "initial", lambda self, chunk: (
        asked.append((chunk.start, chunk.n, chunk.index)), initial(self, chunk))[1])
    pieces = list(pipe.stream(RED, frames=5, start=pixels(1)[0]))
    assert [len(piece) for piece in pieces] == [1, 8, 8, 4]
    assert asked == [(1, 2, 1), (3, 2, 2), (5, 1, 3)]


def test_the_latents_are_those_of_the_vae(pipe: Pipeline) -> None:
    clip = pixels(13)
    assert pipe.vae
    video = torch.from_numpy(clip)[None].permute(0, 4, 1, 2, 3) / 127.5 - 1
    with torch.no_grad():
        encoded = pipe.vae.encode(video)
    made = pipe.latents(prompt=RED, frames=2, start=Video(clip, CARD.fps))
    torch.testing.assert_close(made[:, :4], encoded, atol=1e-5, rtol=0)
    assert made.shape[1] == 6
    assert pipe.latents(prompt=RED, frames=2, start=encoded)[:, :4].equal(encoded)


def test_the_decoder_goes_on_from_the_given_frames(pipe: Pipeline) -> None:
    """New pixels are those of a decode of all latents; the given ones are not, since an autoencoder loses something."""
    clip = pixels(5)
    latents = pipe.latents(prompt=RED, frames=2, start=Video(clip, CARD.fps))
    assert pipe.vae
    with torch.no_grad():
        decoded = Video.from_tensor(pipe.vae.decode(latents), CARD.fps)
    video = pipe(RED, frames=2, start=Video(clip, CARD.fps))
    assert (np.abs(video.frames[5:].astype(int) - decoded.frames[5:]) <= 1).all()
    assert not np.array_equal(decoded.frames[:5], clip)


def test_a_batch_starts_from_one_clip_or_one_a_row(pipe: Pipeline) -> None:
    one, other = pixels(5), pixels(5, 1)
    rows = pipe([RED, BLUE], frames=2, start=[Video(one, CARD.fps), Video(other, CARD.fps)], seed=3)
    assert np.array_equal(rows[0].frames[:5], one)
    assert np.array_equal(rows[1].frames[:5], other)
    single = pipe(BLUE, frames=2, start=Video(other, CARD.fps), seed=3)
    assert (np.abs(rows[1].frames.astype(int) - single.frames) <= 1).all()
    both = pipe([RED, BLUE], frames=2, start=Video(one, CARD.fps), seed=3)
    assert all(np.array_equal(row.frames[:5], one) for row in both)
    latents = torch.randn(1, 2, 4, 2, 4, generator=torch.Generator().manual_seed(0))
    rows = pipe.latents(prompt=[RED, BLUE], frames=2, start=latents)
    assert rows[:, :2].equal(latents.expand(2, -1, -1, -1, -1))
    pair = torch.cat((latents, -latents))
    assert pipe.latents(prompt=[RED, BLUE], frames=2, start=pair)[:, :2].equal(pair)


def test_files_are_read(pipe: Pipeline, tmp_path: Path) -> None:
    image, clip = pixels(1)[0], Video(pixels(5), CARD.fps)
    iio.imwrite(tmp_path / "a.png", image)
    assert np.array_equal(pipe(RED, frames=2, start=tmp_path / "a.png").frames[0], image)
    clip.save(tmp_path / "a.mp4", scale=1)
    video = pipe(RED, frames=2, start=str(tmp_path / "a.mp4"))
    assert np.array_equal(video.frames[:5], iio.imread(tmp_path / "a.mp4"))
    clip.save(tmp_path / "a.gif", scale=1)
    assert np.array_equal(pipe(RED, frames=2, start=tmp_path / "a.gif").frames[:5],
                          iio.imread(tmp_path / "a.gif", index=None))  # fmt: skip


def test_given_frames_count_in_the_horizon_and_not_in_the_length(pipe: Pipeline) -> None:
    """Frequencies that depend on the horizon: 5 given frames and 7 new ones are one video of 12."""
    own = with_(pipe, rotary={"name": "pi"})
    whole = own.latents(prompt=RED, frames=12, seed=1)
    start = whole[:, :5]
    assert own.latents(prompt=RED, frames=7, seed=1, start=start).shape[1] == 12
    cut = own.latents(prompt=RED, frames=8, seed=1, start=whole[:, :4])
    assert cut.equal(whole)


def test_prompts_are_timed_from_the_first_given_frame(pipe: Pipeline) -> None:
    """Chunks of a second. The given part was made under the same schedule, so the whole is."""
    schedule = [(0, RED), (1, BLUE), (3, RED)]
    whole = pipe(schedule, frames=8, on_change="reset")
    start = torch.cat(latents_of(pipe, schedule), 1)[:, :4]
    assert np.array_equal(pipe(schedule, frames=4, on_change="reset", start=start).frames, whole.frames)


def latents_of(pipe: Pipeline, schedule: Any) -> list[torch.Tensor]:
    """What the video of a schedule was decoded from."""
    decode, seen = WanVAE.decode, list[torch.Tensor]()

    def watched(self: WanVAE, latents: torch.Tensor, clamp: bool = True, **state: Any) -> torch.Tensor:
        seen.append(latents)
        return decode(self, latents, clamp, **state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WanVAE, "decode", watched)
        pipe(schedule, frames=8, on_change="reset")
    return seen


BAD: list[tuple[Any, type[Exception], str]] = [
    (Video(pixels(2), 8), ValueError, r"start has 2 pixel frames.*\): give 5, or 1, an image"),
    (Video(pixels(6), 8), ValueError, "give 5 or 9"),
    (Video(pixels(5), 16), ValueError, r"at 16 frames a second and this model makes 8: .* Video\(frames, 8\)"),
    (Video(pixels(5, height=32), 8), ValueError, "start is 32x32x3 .* where 16x32x3 is wanted"),
    (pixels(1)[0, :, :, :1], ValueError, "16x32x1"),
    (pixels(5), ValueError, r"an image is \[H, W, 3\], a clip is Video"),
    (np.zeros((16, 32, 3)), TypeError, "array of float64; an image is uint8"),
    (torch.zeros(1, 2, 4, 2, 4, dtype=torch.uint8), TypeError, "tensor of torch.uint8, and tensors are latents"),
    (torch.zeros(1, 2, 4, 4, 4), ValueError, r"latents of this request are \[B, F, 4, 2, 4\]"),
    (torch.zeros(2, 4, 2, 4), ValueError, "start has shape"),
    (torch.zeros(3, 2, 4, 2, 4), ValueError, "start has 3 rows for a request of 1"),
    (torch.full((1, 2, 4, 2, 4), torch.inf), ValueError, "not finite"),
    ([pixels(1)[0]] * 2, ValueError, "start has 2 clips for 1 rows"),
    ([], ValueError, "start has 0 clips"),
    (b"ab", TypeError, "start=b'ab': give an image"),
    ([torch.zeros(1, 2, 4, 2, 4)], TypeError, r"^start has a tensor in a list: .* one tensor \[B, F, C, H, W\]"),
    (3, TypeError, "start=3: give an image"),
    ("nowhere.png", FileNotFoundError, "there is no file 'nowhere.png'"),
    (Path(__file__), ValueError, "cannot be read as an image or a video"),
]


@pytest.mark.parametrize(("start", "error", "message"), BAD, ids=[message[:30] for *_, message in BAD])
def test_bad_starts_raise_before_anything_runs(
    pipe: Pipeline, start: Any, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a network ran before the input was checked")

    monkeypatch.setattr(CausalDiT, "forward", refuse)
    monkeypatch.setattr(WanVAE, "posterior", refuse)
    for ask in (pipe, pipe.stream):
        with pytest.raises(error, match=message):
            ask(RED, frames=2, start=start)


def test_latents_given_are_whole_chunks(pipe: Pipeline) -> None:
    own = with_(pipe, chunk=3, cache="full")
    for count, nearest in ((2, "1 or 3"), (5, "4 or 6"), (8, "7 or 9")):
        with pytest.raises(ValueError, match=f"{count} given frames do not fill chunks of 3: .* such as {nearest}"):
            own.latents(prompt=RED, frames=3, start=torch.zeros(1, count, 4, 2, 4))
    with pytest.raises(ValueError, match=r"start has 17 pixel frames.* give 13 or 21, or 1, an image"):
        own(RED, frames=3, start=Video(pixels(17), 8))


def test_clips_of_several_lengths_are_refused(pipe: Pipeline) -> None:
    with pytest.raises(ValueError, match="clips of 1, 5 pixel frames: give clips of one length"):
        pipe([RED, BLUE], frames=2, start=[pixels(1)[0], Video(pixels(5), 8)])


def test_a_sampler_without_levels_cannot_start_from_frames(pipe: Pipeline) -> None:
    class Bare(Sampler):
        def rollout(self, denoiser: Any, noise: Any, chunks: Any, state: Any = None) -> Any:
            raise AssertionError("it ran")

    with pytest.raises(ValueError, match=r"cannot start from given frames: it has no levels\(\)"):
        with_(pipe, sampler=Bare()).latents(prompt=RED, frames=2, start=torch.zeros(1, 2, 4, 2, 4))


def test_a_sampler_may_commit_given_frames_in_a_way_of_its_own(pipe: Pipeline) -> None:
    class Own(FewStep):
        def commit_given(self, denoiser: Any, noise: Any, chunk: Chunk, x0: torch.Tensor) -> Chunk:
            committed.append(replace(chunk, sigma=0.25))
            denoiser.commit(x0, committed[-1:])
            return committed[-1]

    committed: list[Chunk] = []
    start = torch.randn(1, 3, 4, 2, 4, generator=torch.Generator().manual_seed(0))
    stream = with_(pipe, sampler=Own((1000, 500), 3.0, 0.0)).stream(RED, frames=2, start=start)
    assert [len(next(stream)) for _ in range(2)] == [1, 8]
    assert committed == [Chunk(0, 1, 0.25, 0), Chunk(1, 2, 0.25, 1)]


def test_given_latents_leave_their_graph(pipe: Pipeline) -> None:
    start = torch.zeros(1, 2, 4, 2, 4, requires_grad=True)
    assert not pipe.latents(prompt=RED, frames=2, start=start).requires_grad


# Stopping and going on


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_stream_goes_on_as_if_it_had_not_stopped(pipe: Pipeline, name: str) -> None:
    own, schedule = with_(pipe, sampler=SAMPLERS[name]), [(0, RED), (0.5, BLUE), (2, RED)]
    ask = {"prompt": schedule, "frames": 6, "seed": 4, "on_change": "recommit", "start": pixels(1)[0]}
    whole = list(own.stream(**ask))
    assert len(whole) == 4
    for stop in range(1, 4):
        stream = own.stream(**ask)
        head = [next(stream) for _ in range(stop)]
        state = stream.state()
        for _ in stream:  # what the stream does next is no matter to its state
            pass
        for _ in range(2):
            assert np.array_equal(joined([*head, *own.resume(state)]), joined(whole))


@pytest.mark.parametrize("cache", sorted({*CACHE.names()} - {"fading", "fading_of_the_docs"}))
def test_every_cache_goes_on(pipe: Pipeline, cache: str, tmp_path: Path) -> None:
    sizes = {"sink": {"window": 6, "sink": 2, "codec": "int8", "sink_codec": "bf16"}, "window": {"window": 6},
             "rolling": {"window": 6}, "participative": SMALL_PARTICIPATIVE}  # fmt: skip
    own = with_(pipe, cache={"name": cache, **sizes.get(cache, {})}, sampler=SAMPLERS["few_step"])
    whole = own(RED, frames=12).frames
    stream = own.stream(RED, frames=12)
    head = [next(stream) for _ in range(4)]
    state = stream.state()
    state.save(tmp_path / "state")
    stream.close()
    for kept in (state, State.load(tmp_path / "state")):
        assert np.array_equal(joined([*head, *own.resume(kept)]), whole)


def test_a_batch_goes_on(pipe: Pipeline) -> None:
    whole = pipe([RED, BLUE], frames=6, seed=[1, 2])
    stream = pipe.stream([RED, BLUE], frames=6, seed=[1, 2])
    head = next(stream)
    pieces = [head, *pipe.resume(stream.state())]
    for row, video in zip(zip(*pieces, strict=True), whole, strict=True):
        assert np.array_equal(joined(row), video.frames)


def test_a_state_is_between_two_pieces(pipe: Pipeline) -> None:
    stream = pipe.stream(RED, frames=4)
    fresh = stream.state()
    assert np.array_equal(joined(list(pipe.resume(fresh))), joined(list(stream)))
    with pytest.raises(ValueError, match="closed, or at its end"):
        stream.state()
    with pipe.stream(RED, frames=4) as other:
        next(other)
    with pytest.raises(ValueError, match="closed, or at its end"):
        other.state()


def test_a_state_of_another_configuration_is_refused(pipe: Pipeline) -> None:
    stream = pipe.stream(RED, frames=4)
    next(stream)
    with pytest.raises(ValueError, match="another configuration, which differs in cache, sampler"):
        with_(pipe, sampler=SAMPLERS["renoised"]).resume(stream.state())
    with pytest.raises(ValueError, match="prompts are in its state: leave prompt out"):
        pipe.resume(stream.state(), lambda _: RED)
    with pytest.raises(TypeError, match=r"state='video.state': give a State, which State.load reads from a file"):
        pipe.resume("video.state")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_state_goes_through_a_file(pipe: Pipeline, name: str, tmp_path: Path) -> None:
    own = with_(pipe, sampler=SAMPLERS[name], cache={"name": "sink", "window": 8, "sink": 2})
    ask = {"prompt": [(0, RED), (2, BLUE)], "frames": 6, "on_change": {"name": "flush", "n": 1}}
    ask["start"] = Video(pixels(9), CARD.fps)
    whole = list(own.stream(**ask))
    for stop in (1, 3):
        stream = own.stream(**ask)
        head = [next(stream) for _ in range(stop)]
        stream.state().save(tmp_path / "state")
        assert np.array_equal(joined([*head, *own.resume(State.load(tmp_path / "state"))]), joined(whole))
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_files_that_are_no_state_are_refused(pipe: Pipeline, tmp_path: Path) -> None:
    stream = pipe.stream(RED, frames=4)
    next(stream)
    path = tmp_path / "state"
    stream.state().save(path)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no state of a stream that could be read"):
            State.load(path)
    for part in (stream.state().request.text_BLD.numpy().tobytes(), b"text_BLD"):
        at = whole.index(part)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=r"is no state .* in it is damaged"):
            State.load(path)
    with pytest.raises(ValueError, match="device 'nowhere' cannot be used here"):
        State.load(path, "nowhere")
    nowhere = tmp_path / "no" / "state"
    for bad, error, message in ((tmp_path, IsADirectoryError, "it is a folder"), (5, TypeError, "give the path"),
                                (nowhere, FileNotFoundError, "no folder .*no'; create it first")):  # fmt: skip
        with pytest.raises(error, match=message):
            stream.state().save(bad)  # pyright: ignore[reportArgumentType]
    marker = tmp_path / "marker"
    torch.save({"payload": Payload(marker)}, path)
    with pytest.raises(ValueError, match="is no state"):
        State.load(path)
    assert not marker.exists()
    with pytest.raises(FileNotFoundError, match="there is no file"):
        State.load(tmp_path / "nowhere")


class Payload:
    """What runs code where a pickle is trusted."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)
