"""Procedural captioned video: one or two coloured shapes in motion, with traits that the caption does not name.

64x64 RGB at 16 pixel frames a second. A clip is defined at every pixel frame index: the truth exists at any horizon.
Latent frame 0 is pixel frame 0; latent frame f >= 1 is pixel frames 4f - 3 .. 4f: 81 pixel frames are 21 latent ones.

The caption fixes colour, shape, motion and background. It does not name the texture of the background, the marking on
an object, the landmark in a corner, or the exact size: a model that loses sight of these can only keep them by memory.
Of two objects the smaller one passes in front of the other.
"""

from collections.abc import Sequence
from math import cos, pi, sin

import numpy as np
from numpy.typing import NDArray

from arvid.training.grammar import (
    BACKGROUNDS,
    COLOURS,
    GRAMMAR,
    HELD_OUT,
    HELD_OUT_PAIRS,
    LUMA,
    MIN_CONTRAST,
    MOTIONS,
    RGB,
    SHAPES,
    Caption,
    Thing,
    all_captions,
    contrast,
    held_out_captions,
    held_out_pairs,
    parse,
    training_captions,
    training_pairs,
)
from arvid.training.scenes import (
    CLIP_FRAMES,
    FPS,
    LANDMARKS,
    MARKINGS,
    REACH,
    SIZE,
    TEXTURES,
    Body,
    Floats,
    Scene,
    largest_radius,
    latent_frame_of,
    pixel_frames,
    sample_scene,
    scene_for,
    track,
    trajectory,
)

__all__ = [
    "BACKGROUNDS", "CLIP_FRAMES", "COLOURS", "FPS", "GRAMMAR", "HELD_OUT", "HELD_OUT_PAIRS", "LANDMARKS", "MARKINGS",
    "MIN_CONTRAST", "MOTIONS", "REACH", "SHAPES", "SIZE", "TEXTURES", "Body", "Caption", "Scene", "Thing",
    "all_captions", "contrast", "held_out_captions", "held_out_pairs", "latent_frame_of", "parse", "pixel_frames",
    "render", "sample_scene", "scene_for", "training_captions", "training_pairs", "trajectory",
]  # fmt: skip

TEXTURE_DEPTH = 24.0  # of 255, either side of the background's colour
STRIPE_PERIOD = SIZE / 3
STRIPE_EDGE = 2.5  # 1 is a cosine; more makes steeper edges
LANDMARK_SIDE, LANDMARK_MARGIN = 12.0, 3.0
LANDMARK_SHARE, MARKING_SHARE = 0.6, 0.75  # of black or white in their colours
DOT_RADIUS, BAND_HALF_WIDTH = 0.42, 0.28  # over the object's radius
LIGHT = 110  # luma from which an object's colour is light
SQUARE_HALF_SIDE = 0.9
TRIANGLE_HALF_WIDTH, TRIANGLE_HALF_HEIGHT = 1.3 * cos(pi / 6), 1.3 * 0.75  # equilateral, circumradius 1.3


def render(scene: Scene, frames: Sequence[int], size: int = SIZE) -> NDArray[np.uint8]:
    """Draw pixel frames (indices from 0, any order, any horizon) as [T, H, W, 3] with H = W = `size`.

    Raises ValueError for a negative index or a size below 8.
    """
    if size < 8:
        raise ValueError(f"size is {size}; a frame has at least 8 pixels a side")
    times = np.asarray(frames, dtype=np.int64).reshape(-1)
    if times.size and times.min() < 0:
        raise ValueError(f"pixel frame {times.min()} asked for; frames count from 0")
    video_THWC = np.broadcast_to(_bytes(_background(scene, size)), (times.size, size, size, 3)).copy()
    latent_T = latent_frame_of(times)
    changes = np.flatnonzero(np.diff(latent_T >= scene.change_frame)) + 1 if scene.change_frame is not None else []
    for part in np.split(np.arange(times.size), changes):  # the look is one within a part
        if part.size:
            said = scene.says(int(latent_T[part[0]]))
            objects = zip(said.things, scene.bodies, strict=True)
            for thing, body in sorted(objects, key=lambda one: -largest_radius(*one)):
                _draw(video_THWC[part[0] : part[-1] + 1], thing, said.background, body, times[part])
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
    wave = stripes(axis) if kind == "stripes" else 2 * axis / SIZE - 1
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


def stripes(positions: Floats) -> Floats:
    """How light stripes are, -1 .. 1, at positions in pixels of a 64-pixel frame."""
    return (STRIPE_EDGE * np.cos(2 * pi * positions / STRIPE_PERIOD)).clip(-1, 1)


def landmark_colour(background: str) -> Floats:
    """RGB of a landmark, [C] in 0..255: the background's tone, darker if it is light and lighter if it is dark."""
    return _mix(BACKGROUNDS[background], 0 if is_light(background) else 255, LANDMARK_SHARE)


def marking_colour(colour: str, background: str, marking: str) -> Floats:
    """RGB of a marking, [C] in 0..255, in the object's own hue, either dark or light.

    A band reaches the object's edge, so it is light on a dark background and dark on a light one; a dot, within the
    object, is dark on a light object and light on a dark one.
    """
    dark = is_light(background) if marking == "band" else np.dot(LUMA, COLOURS[colour]) > LIGHT
    return _mix(COLOURS[colour], 0 if dark else 255, MARKING_SHARE)


def is_light(background: str) -> bool:
    """Whether a background is white, beige or gray, not black, brown or navy."""
    return sum(BACKGROUNDS[background]) > 3 * 110


def _mix(colour: RGB, other: int, share: float) -> Floats:
    return np.array([value + share * (other - value) for value in colour], np.float32)


def _cover(distance: Floats, size: int) -> Floats:
    """How much of each pixel lies inside, 0..1, from a signed distance: an edge is one pixel wide."""
    return (0.5 - distance * np.float32(size / SIZE)).clip(0, 1)


def _draw(
    video_THWC: NDArray[np.uint8], thing: Thing, background: str, body: Body, times: NDArray[np.int64]
) -> None:
    """Draw an object over `video_THWC`, in place."""
    size = video_THWC.shape[1]
    x_T, y_T, radius_T = track(thing.motion, body, times).T
    dx_TW, dy_TH = (_coordinates(size) - centre_T[:, None] for centre_T in (x_T, y_T))
    dx_T1W, dy_TH1, radius_T11 = dx_TW[:, None, :], dy_TH[:, :, None], radius_T[:, None, None]
    match thing.shape:
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
    t_N = inside_N // (size * size)
    colour_NC = np.array(COLOURS[thing.colour], np.float32)
    if body.marking != "none":
        drop_T = radius_T * (TRIANGLE_HALF_HEIGHT / 3 if thing.shape == "triangle" else 0)  # to the centroid
        dy_N = (dy_TH - drop_T[:, None]).take(inside_N // size)
        if body.marking == "dot":
            dx_N = dx_TW.take(t_N * size + inside_N % size)
            distance_N = np.sqrt(dx_N**2 + dy_N**2) - DOT_RADIUS * radius_T.take(t_N)
        else:
            distance_N = abs(dy_N) - BAND_HALF_WIDTH * radius_T.take(t_N)
        marking_C = marking_colour(thing.colour, background, body.marking) - colour_NC
        colour_NC = colour_NC + _cover(distance_N, size)[:, None] * marking_C
    video_NC = video_THWC.reshape(-1, 3)
    behind_NC = video_NC.take(inside_N, axis=0).astype(np.float32)
    video_NC[inside_N] = _bytes(behind_NC + cover_N1 * (colour_NC - behind_NC))
