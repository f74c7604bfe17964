"""Procedural captioned video: a coloured shape in motion, with traits that the caption does not name.

64x64 RGB at 16 pixel frames a second. A clip is defined at every pixel frame index: the truth exists at any horizon.
Latent frame 0 is pixel frame 0; latent frame f >= 1 is pixel frames 4f - 3 .. 4f: 81 pixel frames are 21 latent ones.

The caption fixes colour, shape, motion and background. It does not name the texture of the background, the marking on
the object, the landmark in a corner, or the exact size: a model that loses sight of these can only keep them by memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import cos, pi, sin

import numpy as np
from numpy.typing import ArrayLike, NDArray

from arvid.training.grammar import (
    BACKGROUNDS,
    COLOURS,
    GRAMMAR,
    HELD_OUT,
    MOTIONS,
    RGB,
    SHAPES,
    Caption,
    all_captions,
    contrast,
    held_out_captions,
    parse,
    training_captions,
)

__all__ = [
    "BACKGROUNDS", "COLOURS", "FPS", "GRAMMAR", "HELD_OUT", "LANDMARKS", "MARKINGS", "MOTIONS", "SHAPES", "TEXTURES",
    "Caption", "Scene", "all_captions", "contrast", "held_out_captions", "latent_frame_of", "parse", "pixel_frames",
    "render", "sample_scene", "scene_for", "training_captions", "trajectory",
]  # fmt: skip

Floats = NDArray[np.floating]

SIZE = 64  # the unit of every length below is one pixel of a 64-pixel frame
FPS = 16
CLIP_FRAMES = 21  # latent frames of a training clip

TEXTURES = (
    "plain", "gradient right", "gradient left", "gradient down", "gradient up", "stripes across", "stripes down"
)  # fmt: skip
MARKINGS = ("none", "dot", "band")
LANDMARKS = ("none", "top left", "top right", "bottom left", "bottom right")

TEXTURE_DEPTH = 18.0  # of 255, either side of the background's colour
STRIPE_PERIOD = SIZE / 3
LANDMARK_SIDE, LANDMARK_MARGIN = 12.0, 3.0
GROWTH = 1.6  # largest size over smallest, of an object that grows and shrinks
DOT_RADIUS, BAND_HALF_WIDTH = 0.42, 0.28  # over the object's radius
SQUARE_HALF_SIDE = 0.9
TRIANGLE_HALF_WIDTH, TRIANGLE_HALF_HEIGHT = 1.3 * cos(pi / 6), 1.3 * 0.75  # equilateral, circumradius 1.3
REACH = 1.15  # no shape extends further than this from its centre, along x or y


@dataclass(frozen=True)
class Scene:
    """Everything that determines a clip.

    `radius` and `offset` are in pixels of a 64-pixel frame, `period_x` and `period_y` in pixel frames, `phase_x` and
    `phase_y` in turns. A circle has `phase_y` a quarter turn before or after `phase_x`, and one period. What only
    memory keeps: `texture`, `marking`, `landmark` (see `TEXTURES`, `MARKINGS`, `LANDMARKS`) and `radius`.
    From latent frame `change_frame` on, the object has `new_colour` or `new_shape`, or both.
    """

    said: Caption
    radius: float = 12.0
    texture: str = "plain"
    marking: str = "none"
    landmark: str = "none"
    phase_x: float = 0.0
    phase_y: float = 0.25
    period_x: float = 48.0
    period_y: float = 64.0
    change_frame: int | None = None
    new_colour: str | None = None
    new_shape: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("texture", TEXTURES), ("marking", MARKINGS), ("landmark", LANDMARKS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of: {', '.join(allowed)}")
        for name in ("radius", "period_x", "period_y"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive and finite")
        if (self.change_frame is None) != (self.new_colour is None and self.new_shape is None):
            raise ValueError("a change needs change_frame together with new_colour or new_shape")
        if self.change_frame is not None and self.change_frame < 1:
            raise ValueError(f"change_frame is {self.change_frame}; the first latent frame that can change is 1")
        self.says(self.change_frame or 0)  # raises for an unknown new colour or shape

    def says(self, latent_frame: int = 0) -> Caption:
        """What the caption at a latent frame says."""
        if self.change_frame is None or latent_frame < self.change_frame:
            return self.said
        return replace(self.said, colour=self.new_colour or self.said.colour, shape=self.new_shape or self.said.shape)

    def caption(self, latent_frame: int = 0) -> str:
        """The caption that holds at a latent frame."""
        return str(self.says(latent_frame))

    def captions(self) -> list[tuple[int, str]]:
        """(latent frame, the caption that holds from there on), from frame 0."""
        first = [(0, self.caption())]
        return first if self.change_frame is None else [*first, (self.change_frame, self.caption(self.change_frame))]


def latent_frame_of(pixel_frames: ArrayLike) -> NDArray[np.int64]:
    """The latent frame that holds each pixel frame; shape kept."""
    return (np.asarray(pixel_frames, dtype=np.int64) + 3) // 4


def pixel_frames(latent_frames: int) -> int:
    """How many pixel frames that many latent frames decode to: 21 to 81."""
    return max(0, 4 * latent_frames - 3)


def sample_scene(rng: np.random.Generator, change: bool = False, first_frame_alone: bool = False) -> Scene:
    """A random scene with training captions only; see `scene_for` for the arguments."""
    captions = training_captions()
    return scene_for(captions[rng.integers(len(captions))], rng, change, first_frame_alone)


def scene_for(caption: str, rng: np.random.Generator, change: bool = False, first_frame_alone: bool = False) -> Scene:
    """A random scene of a caption: size, texture, marking, landmark, phases and periods are drawn.

    `change` adds a new colour or shape at a chunk boundary inside the clip: chunks of 3 latent frames, after a first
    chunk of 1 where `first_frame_alone`. Raises ValueError for a caption outside the grammar.
    """
    said = parse(caption)
    texture = rng.choice(["plain", "gradient", "stripes"])
    phase_x, phase_y = rng.random(2)
    if said.motion == "moves in a circle":
        phase_y = phase_x + rng.choice([-0.25, 0.25])
    short = rng.uniform(40, 56)
    periods = rng.permutation([short, short * rng.uniform(1.25, 1.6)])  # unlike: alike, a bounce may look a circle
    scene = Scene(
        said=said,
        radius=float(rng.uniform(10, 14)),
        texture=str(rng.choice([name for name in TEXTURES if name.startswith(texture)])),
        marking=str(rng.choice(MARKINGS)),
        landmark=str(rng.choice(LANDMARKS)),
        phase_x=float(phase_x),
        phase_y=float(phase_y),
        period_x=float(periods[0]),
        period_y=float(periods[1]),
    )
    if not change:
        return scene
    frame = 3 * int(rng.integers(2, CLIP_FRAMES // 3 - 1)) + int(first_frame_alone)
    allowed = set(training_captions())
    looks = [{"new_colour": word} for word in COLOURS if word != said.colour]
    looks = looks if rng.random() < 0.5 else [{"new_shape": word} for word in SHAPES if word != said.shape]
    changed = [replace(scene, change_frame=frame, **look) for look in looks]
    changed = [one for one in changed if one.caption(frame) in allowed] or [
        one for word in COLOURS if word != said.colour
        if (one := replace(scene, change_frame=frame, new_colour=word)).caption(frame) in allowed
    ]  # fmt: skip
    return changed[rng.integers(len(changed))]


def render(scene: Scene, frames: Sequence[int], size: int = SIZE) -> NDArray[np.uint8]:
    """Draw pixel frames (indices from 0, any order, any horizon) as [T, H, W, 3] with H = W = `size`.

    Raises ValueError for a negative index or a size below 8.
    """
    if size < 8:
        raise ValueError(f"size is {size}; a frame has at least 8 pixels a side")
    times = np.asarray(frames, dtype=np.int64).reshape(-1)
    if times.size and times.min() < 0:
        raise ValueError(f"pixel frame {times.min()} asked for; frames count from 0")
    background_HWC = _background(scene, size)
    video_THWC = np.broadcast_to(_bytes(background_HWC), (times.size, size, size, 3)).copy()
    latent_T = latent_frame_of(times)
    changes = np.flatnonzero(np.diff(latent_T >= scene.change_frame)) + 1 if scene.change_frame is not None else []
    for part in np.split(np.arange(times.size), changes):  # the look is one within a part
        if part.size:
            _draw(
                video_THWC[part[0] : part[-1] + 1],
                scene,
                scene.says(int(latent_T[part[0]])),
                times[part],
                background_HWC,
            )
    return video_THWC


def _bytes(values: Floats) -> NDArray[np.uint8]:
    return (values + 0.5).astype(np.uint8)


def _coordinates(size: int) -> Floats:
    return (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(SIZE / size)


def _background(scene: Scene, size: int) -> Floats:
    """Texture and landmark as [H, W, C], 0..255."""
    colour_C = np.array(BACKGROUNDS[scene.said.background], np.float32)
    axis = _coordinates(size)
    kind, _, way = scene.texture.partition(" ")
    wave = np.cos(2 * pi * axis / STRIPE_PERIOD) if kind == "stripes" else 2 * axis / SIZE - 1
    if way in ("left", "up"):
        wave = -wave
    pattern_HW = np.broadcast_to(wave[:, None] if way in ("down", "up") else wave[None, :], (size, size))
    if kind == "plain":
        pattern_HW = np.zeros_like(pattern_HW)
    else:  # black and white move by just enough to leave the texture room on both sides
        colour_C = colour_C.clip(TEXTURE_DEPTH, 255 - TEXTURE_DEPTH)
    background_HWC = colour_C + TEXTURE_DEPTH * pattern_HW[..., None]
    if scene.landmark != "none":
        near, far = LANDMARK_MARGIN + LANDMARK_SIDE / 2, SIZE - LANDMARK_MARGIN - LANDMARK_SIDE / 2
        dx = axis[None, :] - (near if "left" in scene.landmark else far)
        dy = axis[:, None] - (near if "top" in scene.landmark else far)
        cover_HW = _cover(np.maximum(abs(dx), abs(dy)) - LANDMARK_SIDE / 2, size)
        background_HWC += cover_HW[..., None] * (landmark_colour(scene.said.background) - background_HWC)
    return background_HWC


def landmark_colour(background: str) -> Floats:
    """RGB of a landmark, [C] in 0..255: the background's tone, darker if it is light and lighter if it is dark."""
    return _mix(BACKGROUNDS[background], 0 if is_light(background) else 255, 0.4)


def marking_colour(said: Caption, marking: str) -> Floats:
    """RGB of a marking, [C] in 0..255, in the object's own hue: a dark dot, or a band.

    A band reaches the object's edge, so it is light on a dark background and dark on a light one.
    """
    dark = marking == "dot" or is_light(said.background)
    return _mix(COLOURS[said.colour], 0 if dark else 255, 0.65 if dark else 0.6)


def is_light(background: str) -> bool:
    """Whether a background is white, beige or gray, not black, brown or navy."""
    return sum(BACKGROUNDS[background]) > 3 * 110


def _mix(colour: RGB, other: int, share: float) -> Floats:
    return np.array([value + share * (other - value) for value in colour], np.float32)


def _cover(distance: Floats, size: int) -> Floats:
    """How much of each pixel lies inside, 0..1, from a signed distance: an edge is one pixel wide."""
    return (0.5 - distance * np.float32(size / SIZE)).clip(0, 1)


def _fold(turns: Floats) -> Floats:
    """A triangle wave between 0 and 1 of period 1: motion at constant speed, reflected at both ends."""
    return 1 - abs(2 * (turns % 1) - 1)


def trajectory(scene: Scene, frames: ArrayLike) -> Floats:
    """Centre and radius (x, y, r) of the object at pixel frames [T]: [T, 3], in pixels of a 64-pixel frame."""
    times = np.asarray(frames, dtype=np.float64)
    turns_x = scene.phase_x + times / scene.period_x
    turns_y = scene.phase_y + times / (scene.period_x if scene.said.motion == "moves in a circle" else scene.period_y)
    x, y = np.full_like(times, 0.5), np.full_like(times, 0.5)  # 0..1 across the room there is
    radius = np.full_like(times, scene.radius)
    match scene.said.motion:
        case "bounces around":
            x, y = _fold(turns_x), _fold(turns_y)
        case "moves left and right":
            x, y = _fold(turns_x), y + (scene.phase_y % 1 - 0.5)
        case "moves up and down":
            x, y = x + (scene.phase_x % 1 - 0.5), _fold(turns_y)
        case "moves in a circle":
            x, y = (0.5 + 0.45 * np.sin(2 * pi * turns) for turns in (turns_x, turns_y))
        case _:
            x = x + 0.3 * (scene.phase_y % 1 - 0.5)
            radius = radius * (1 + (GROWTH - 1) * (0.5 - 0.5 * np.cos(2 * pi * turns_x)))
    reach = REACH * scene.radius
    room = SIZE - 2 * reach
    return np.stack([reach + room * x, reach + room * y, radius], axis=-1).astype(np.float32)


def _draw(
    video_THWC: NDArray[np.uint8], scene: Scene, said: Caption, times: NDArray[np.int64], background_HWC: Floats
) -> None:
    """Draw the object over `video_THWC`, in place."""
    size = len(background_HWC)
    x_T, y_T, radius_T = trajectory(scene, times).T
    dx_TW, dy_TH = (_coordinates(size) - centre_T[:, None] for centre_T in (x_T, y_T))
    dx_T1W, dy_TH1, radius_T11 = dx_TW[:, None, :], dy_TH[:, :, None], radius_T[:, None, None]
    match said.shape:
        case "ball":
            distance_THW = np.sqrt(dx_T1W**2 + dy_TH1**2) - radius_T11
        case "square":
            distance_THW = np.maximum(abs(dx_T1W), abs(dy_TH1)) - SQUARE_HALF_SIDE * radius_T11
        case _:
            half_height = TRIANGLE_HALF_HEIGHT * radius_T11
            sides = abs(dx_T1W) * cos(pi / 6) - (dy_TH1 + half_height) * sin(pi / 6)
            distance_THW = np.maximum(sides, dy_TH1 - half_height)
    cover_N = _cover(distance_THW, size).reshape(-1)
    inside_N = np.flatnonzero(cover_N > 0)  # a fifth of a frame on average: the rest stays as it is
    cover_N1 = cover_N.take(inside_N)[:, None]
    t_N, place_N = divmod(inside_N, size * size)
    colour_NC = np.array(COLOURS[said.colour], np.float32)
    if scene.marking != "none":
        drop_T = radius_T * (TRIANGLE_HALF_HEIGHT / 3 if said.shape == "triangle" else 0)  # to the centroid
        dy_N = (dy_TH - drop_T[:, None]).take(inside_N // size)
        if scene.marking == "dot":
            dx_N = dx_TW.take(t_N * size + place_N % size)
            distance_N = np.sqrt(dx_N**2 + dy_N**2) - DOT_RADIUS * radius_T.take(t_N)
        else:
            distance_N = abs(dy_N) - BAND_HALF_WIDTH * radius_T.take(t_N)
        marking_C = marking_colour(said, scene.marking) - colour_NC
        colour_NC = colour_NC + _cover(distance_N, size)[:, None] * marking_C
    behind_NC = background_HWC.reshape(-1, 3).take(place_N, axis=0)
    video_THWC.reshape(-1, 3)[inside_N] = _bytes(behind_NC + cover_N1 * (colour_NC - behind_NC))
