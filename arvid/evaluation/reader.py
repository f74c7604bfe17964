"""Read a clip's pixels: what is there, how it moves, and what of it stays. Knows nothing of the model.

    reading = read(video)                                  # [T, H, W, 3]
    score(reading, "a red ball bounces around on a navy background")
    persistence(reading).texture                           # [T], 1 where it is what the first frames had

Frames on this page are pixel frames, as decoded.
"""

import warnings
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from arvid.evaluation.motion import classify
from arvid.evaluation.pixels import (
    LEAST_DISTANCE,
    axes,
    checked_video,
    corner_boxes,
    find_object,
    fit_background,
    largest_component,
    towards_landmark,
)
from arvid.training.clips import BACKGROUNDS, COLOURS, SHAPES, TEXTURE_DEPTH, Caption, marking_colour, parse

Floats = NDArray[np.floating]
Names = NDArray[np.str_]

AREA = (0.03, 0.5)  # plausible areas of an object, as shares of the frame; the truth has 0.053 to 0.40
LEAST_SHARE = 0.75  # of all that is neither background nor landmark, in one piece
NO_COLOUR = 0.25  # colour error beyond which it is no object of the palette
LEAST_VISIBLE = 0.3  # share of a landmark's place that the object leaves free, to see it
MARKING_DISTANCE = 80.0  # distance in RGB of a marking from the object's colour; more than that counts as that
LARGEST_DISTANCE = 255 * 3**0.5  # in RGB
LANDMARK_OFF = 60.0  # distance in RGB from every mixture of background and landmark at which a pixel is neither
NEAR_COLOUR = 110.0  # distance in RGB from a colour of the palette within which a pixel may be of a piece of it
LEAST_PIECE = 0.003  # of the frame: the smaller of two objects has 0.03 and a marking on it, and is partly hidden
FIVE_SECONDS = 81
PIECE = 128  # frames read at a time: frames are independent, memory is not
REFERENCE = 9  # pixel frames of a first chunk of three latent frames


@dataclass(frozen=True, eq=False)
class Reading:
    """What was read in each frame. Errors are distances in RGB over the largest possible one, 0..1.

    Where no object is `present`, its names are "" and its numbers NaN. `texture` holds gradient right, gradient down,
    stripes across, stripes down, over the depth that the clips use; `landmark` how much of one is seen in each corner
    (top left, top right, bottom left, bottom right), NaN behind the object; `marking` how much the object's middle and
    its sides differ from its colour: about 0 0 without a marking, 1 0 for a dot, 1 1 for a band. All of these are of
    one object, the largest thing there is; `pieces` holds, for each colour of the palette, the largest connected part
    of the frame in it, as a share of the frame without lines of one pixel, 0 below `LEAST_PIECE`.
    """

    background: Names  # [T]
    background_error: Floats  # [T]
    present: NDArray[np.bool_]  # [T]
    colour: Names  # [T]
    colour_error: Floats  # [T]
    shape: Names  # [T]
    centre: Floats  # [T, 2] x, y over the frame's sides
    area: Floats  # [T] share of the frame
    texture: Floats  # [T, 4]
    landmark: Floats  # [T, 4]
    marking: Floats  # [T, 2]
    pieces: Floats  # [T, 8]

    def __len__(self) -> int:
        return len(self.present)

    def part(self, start: int, stop: int | None = None) -> "Reading":
        """The reading of frames start .. stop - 1."""
        return Reading(**{field.name: getattr(self, field.name)[start:stop] for field in fields(self)})

    @property
    def motion(self) -> str:
        """One of the five motions, "still", or "unclear": see `arvid.evaluation.motion.classify`."""
        return classify(self.centre, self.area)


@dataclass(frozen=True)
class Score:
    """How far a reading is what a caption says.

    A name is right when it is the commonest one of the clip (of the frames with an object, for colour and shape).
    Of a caption of two objects, `colour` is right when each of its colours is a piece in more than half of the frames,
    and shapes and motions are not read: None.
    """

    background: bool
    colour: bool
    shape: bool | None
    motion: bool | None
    presence: float  # share of frames with an object; of two, with pieces of two colours
    good: float  # share of frames with an object of the right colour on the right background; of two, with both


@dataclass(frozen=True, eq=False)
class Persistence:
    """How far what the caption does not name is what the first frames had: 1 the same, 0 not at all. Each [T].

    NaN where it cannot be seen: without an object, or a landmark's corner behind it.
    """

    texture: Floats
    landmark: Floats
    marking: Floats
    size: Floats


def read(video_THWC: NDArray) -> Reading:
    """Read a video [T, H, W, 3]: uint8, or floats in 0..1. Takes about 1.5 ms a frame of 64x64.

    Raises TypeError or ValueError for anything else.
    """
    video_THWC = checked_video(video_THWC)
    pieces = [_read_frames(video_THWC[start : start + PIECE]) for start in range(0, len(video_THWC), PIECE)]
    names = [field.name for field in fields(Reading)]
    return Reading(**{name: np.concatenate([getattr(piece, name) for piece in pieces]) for name in names})


def _read_frames(video_THWC: Floats) -> Reading:
    fit_TKC, away_THWC = fit_background(video_THWC)
    mean_TC = fit_TKC[:, 0]
    background, background_error = _nearest(mean_TC, BACKGROUNDS)
    share_THW, off_THW = towards_landmark(away_THWC, mean_TC, background)
    mask_THW, dominance_T = find_object(away_THWC, off_THW)
    pieces_TK, covered_THW = _pieces(video_THWC, away_THWC)
    area_T = mask_THW.mean((1, 2))
    colour, colour_error = _object_colour(video_THWC, mask_THW)
    present = (area_T > AREA[0]) & (area_T < AREA[1]) & (dominance_T > LEAST_SHARE) & (colour_error < NO_COLOUR)
    y_TH1, x_T1W, centre_T2 = _object_axes(mask_THW)
    nothing = np.where(present, 1.0, np.nan)
    return Reading(
        background=background,
        background_error=background_error,
        present=present,
        colour=np.where(present, colour, ""),
        colour_error=colour_error * nothing,
        shape=np.where(present, _shape(mask_THW, y_TH1, x_T1W), ""),
        centre=centre_T2 * nothing[:, None],
        area=area_T * nothing,
        texture=fit_TKC[:, 1:].mean(-1) / TEXTURE_DEPTH,
        landmark=_landmark(share_THW, off_THW, mask_THW | covered_THW),
        marking=_marking(video_THWC, y_TH1, x_T1W) * nothing[:, None],
        pieces=pieces_TK,
    )


def score(reading: Reading, caption: str) -> Score:
    """Hold a reading against a caption. Raises ValueError for a caption outside the grammar or a reading of nothing."""
    said = parse(caption)
    if not len(reading):
        raise ValueError("the reading has no frames, so there is nothing to score")
    if said.second:
        return _score_of_two(reading, said)
    right = reading.present & (reading.colour == said.colour) & (reading.background == said.background)
    return Score(
        background=_commonest(reading.background) == said.background,
        colour=_commonest(reading.colour[reading.present]) == said.colour,
        shape=_commonest(reading.shape[reading.present]) == said.shape,
        motion=reading.motion == said.motion,
        presence=float(reading.present.mean()),
        good=float(right.mean()),
    )


def _score_of_two(reading: Reading, said: Caption) -> Score:
    found_TK = reading.pieces > 0
    both_T2 = found_TK[:, [list(COLOURS).index(thing.colour) for thing in said.things]]
    right_T = both_T2.all(-1) & (reading.background == said.background)
    return Score(
        background=_commonest(reading.background) == said.background,
        colour=bool((both_T2.mean(0) > 0.5).all()),
        shape=None,
        motion=None,
        presence=float((found_TK.sum(-1) >= 2).mean()),
        good=float(right_T.mean()),
    )


def persistence(reading: Reading, reference: int = REFERENCE) -> Persistence:
    """Hold every frame against the median of the first `reference` frames, where they show what is asked.

    An object that grows and shrinks has the size it ought to have while between the extremes of its first five
    seconds. Raises ValueError for a reference that is not within the reading.
    """
    if not 1 <= reference <= len(reading):
        raise ValueError(f"reference is {reference}; the reading has {len(reading)} frames: choose 1 .. {len(reading)}")
    size = np.sqrt(reading.area)
    start = reading.part(0, FIVE_SECONDS)
    growing = start.motion == "grows and shrinks"
    low, high = _quantiles(size[: len(start) if growing else reference], [0.02, 0.98] if growing else [0.5, 0.5])
    near = size.clip(low, high)
    return Persistence(
        texture=_same(reading.texture, reference),
        landmark=_same(reading.landmark, reference),
        marking=_same(reading.marking, reference),
        size=np.minimum(size / near, near / size),
    )


def _quantiles(values: Floats, at: list[float]) -> Floats:
    """Quantiles over the frames, NaN frames left out; NaN where there is no other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "All-NaN slice": the answer is NaN, as it should be
        return np.nanquantile(values, at, axis=0)


def _same(values_TN: Floats, reference: int) -> Floats:
    """1 minus the largest difference from the first frames, [T]; NaN only where no value can be compared."""
    difference_TN = abs(values_TN - _quantiles(values_TN[:reference], [0.5])[0])
    unknown_T = np.isnan(difference_TN).all(-1)
    return np.where(unknown_T, np.nan, (1 - np.nan_to_num(difference_TN).max(-1)).clip(0, 1))


def _commonest(names: Names) -> str:
    """The name that occurs most often; "" where there is none."""
    values, counts = np.unique(names, return_counts=True)
    return str(values[counts.argmax()]) if counts.size else ""


def _nearest(colour_NC: Floats, palette: dict[str, tuple[int, int, int]]) -> tuple[Names, Floats]:
    """Name each colour by the nearest of a palette; and its error, 0..1."""
    distance_NK = np.linalg.norm(colour_NC[:, None] - np.array(list(palette.values()), np.float32), axis=-1)
    best_N = distance_NK.argmin(-1)
    return np.array(list(palette))[best_N], distance_NK.min(-1) / LARGEST_DISTANCE


def _object_colour(video_THWC: Floats, mask_THW: NDArray[np.bool_]) -> tuple[Names, Floats]:
    """The colour of the palette that most pixels of the mask are nearest to, and how far those are from it on average.

    Votes, and not a mean, because a marking and a blurred edge are other colours in the same mask.
    """
    palette_KC = np.array(list(COLOURS.values()), np.float32)
    T, K = len(mask_THW), len(palette_KC)
    place_N = np.flatnonzero(mask_THW)
    t_N = place_N // mask_THW[0].size
    pixel_NC = video_THWC.reshape(-1, 3).take(place_N, axis=0)
    distance_NK = (pixel_NC**2).sum(-1, keepdims=True) - 2 * pixel_NC @ palette_KC.T + (palette_KC**2).sum(-1)
    ballot_N = t_N * K + distance_NK.argmin(-1)
    votes_TK = np.bincount(ballot_N, minlength=T * K).reshape(T, K)
    winner_T = votes_TK.argmax(-1)
    elected_N = ballot_N == t_N * K + winner_T[t_N]
    sums_TC = [np.bincount(t_N[elected_N], pixel_NC[elected_N, c], minlength=T) for c in range(3)]
    mean_TC = np.stack(sums_TC, axis=-1) / votes_TK.max(-1, keepdims=True).clip(1)
    error_T = np.linalg.norm(mean_TC - palette_KC[winner_T], axis=-1) / LARGEST_DISTANCE
    return np.array(list(COLOURS))[winner_T], error_T


def _pieces(video_THWC: Floats, away_THWC: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """The largest connected part of each colour of the palette, [T, 8] shares of the frame; what they cover together.

    Smaller ones than `LEAST_PIECE` are left out of both, and so are what is nearer to a marking (a red object's light
    band is no pink one) and lines of one pixel: edges, whose mixed colours may be another object's.
    """
    markings = [marking_colour(colour, background, "band") for colour in COLOURS for background in ("black", "white")]
    palette_KC = np.array([*COLOURS.values(), *markings], np.float32)
    T, H, W, _ = video_THWC.shape
    place_N = np.flatnonzero(np.einsum("thwc,thwc->thw", away_THWC, away_THWC) > LEAST_DISTANCE**2)
    pixels_NC = video_THWC.reshape(-1, 3).take(place_N, axis=0)
    distance_NK = (pixels_NC**2).sum(-1, keepdims=True) - 2 * pixels_NC @ palette_KC.T + (palette_KC**2).sum(-1)
    colour_THW = np.full((T, H, W), -1)
    colour_THW.reshape(-1)[place_N] = np.where(distance_NK.min(-1) < NEAR_COLOUR**2, distance_NK.argmin(-1), -1)
    pieces_TK = np.zeros((T, len(COLOURS)), np.float32)
    covered_THW = np.zeros((T, H, W), bool)
    for k in range(len(COLOURS)):
        of_colour_THW = colour_THW == k
        solid_THW = _solid(of_colour_THW)
        frames = np.flatnonzero(solid_THW.mean((1, 2)) >= LEAST_PIECE)
        if frames.size:
            largest_FHW = largest_component(of_colour_THW[frames]) & solid_THW[frames]
            share_F = largest_FHW.mean((1, 2))
            pieces_TK[frames, k] = np.where(share_F >= LEAST_PIECE, share_F, 0)
            covered_THW[frames] |= largest_FHW & (share_F >= LEAST_PIECE)[:, None, None]
    return pieces_TK, covered_THW


def _solid(mask_THW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The upper left pixels of those blocks of 2 x 2 that are all of a mask."""
    solid_THW = np.zeros_like(mask_THW)
    upper_THW, lower_THW = mask_THW[:, :-1], mask_THW[:, 1:]
    solid_THW[:, :-1, :-1] = upper_THW[..., :-1] & upper_THW[..., 1:] & lower_THW[..., :-1] & lower_THW[..., 1:]
    return solid_THW


def _object_axes(mask_THW: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """Pixel centres from the mask's centroid in units of the root of its area, [T, H, 1] and [T, 1, W]; the centroid.

    The centroid is [T, 2]: x, y over the frame's sides.
    """
    _, H, W = mask_THW.shape
    y_H1, x_1W = axes(H, W)
    area_T = mask_THW.sum((1, 2)).clip(1)
    centre_T2 = np.stack([mask_THW.sum(1) @ x_1W[0] / area_T, mask_THW.sum(2) @ y_H1[:, 0] / area_T], axis=-1)
    root_T11 = np.sqrt(area_T)[:, None, None]
    x_T1W = (x_1W - centre_T2[:, 0, None, None]) * W / root_T11
    y_TH1 = (y_H1 - centre_T2[:, 1, None, None]) * H / root_T11
    return y_TH1, x_T1W, centre_T2


def _shape(mask_THW: NDArray[np.bool_], y_TH1: Floats, x_T1W: Floats) -> Names:
    """The shape of the same area and centroid that overlaps the mask best (intersection over union)."""
    side = 2 / 3**0.25  # of an equilateral triangle of area 1, whose centroid is a third of its height above the base
    height = side * np.sqrt(3) / 2
    ideal = {
        "ball": x_T1W**2 + y_TH1**2 < 1 / np.pi,
        "square": (abs(x_T1W) < 0.5) & (abs(y_TH1) < 0.5),
        "triangle": (y_TH1 < height / 3) & (abs(x_T1W) < (y_TH1 + 2 * height / 3) * side / 2 / height),
    }
    overlap = [(ideal[name] & mask_THW).sum((1, 2)) / (ideal[name] | mask_THW).sum((1, 2)).clip(1) for name in SHAPES]
    return np.array(SHAPES)[np.argmax(overlap, axis=0)]


def _landmark(share_THW: Floats, off_THW: Floats, mask_THW: NDArray[np.bool_]) -> Floats:
    """How much of a landmark each corner shows, 0..1 [T, 4]; NaN where the object hides most of its place."""
    T, H, W = mask_THW.shape
    near_THW = mask_THW.copy()  # a pixel around the object is a mixture
    near_THW[:, 1:] |= mask_THW[:, :-1]
    near_THW[:, :-1] |= mask_THW[:, 1:]
    near_THW[:, :, 1:] |= mask_THW[:, :, :-1]
    near_THW[:, :, :-1] |= mask_THW[:, :, 1:]
    box_P4 = corner_boxes(H, W, grow=-1).reshape(4, -1).T.astype(np.float32)
    free_TP = (~near_THW).reshape(T, -1).astype(np.float32)
    seen_TP = np.where(off_THW < LANDMARK_OFF, share_THW.clip(0, 1), 0).reshape(T, -1) * free_TP
    visible_T4 = free_TP @ box_P4
    return np.where(visible_T4 > LEAST_VISIBLE * box_P4.sum(0), seen_TP @ box_P4 / visible_T4.clip(1), np.nan)


def _marking(video_THWC: Floats, y_TH1: Floats, x_T1W: Floats) -> Floats:
    """How far the object's middle and its sides are from the colour above and below, 0..1 [T, 2]."""
    T = len(video_THWC)
    inner_x, inner_y = abs(x_T1W) < 0.1, abs(y_TH1) < 0.1
    outer_x, outer_y = ((abs(axis) > 0.3) & (abs(axis) < 0.39) for axis in (x_T1W, y_TH1))

    def mean(place_THW: NDArray[np.bool_]) -> Floats:
        weight_T1P = place_THW.reshape(T, 1, -1).astype(np.float32)
        return (weight_T1P @ video_THWC.reshape(T, -1, 3))[:, 0] / weight_T1P.sum(-1).clip(1)

    body_TC = mean(inner_x & outer_y)
    parts = [np.linalg.norm(mean(place) - body_TC, axis=-1) for place in (inner_x & inner_y, outer_x & inner_y)]
    return (np.stack(parts, axis=-1) / MARKING_DISTANCE).clip(0, 1)
