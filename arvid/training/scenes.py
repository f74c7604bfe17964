"""Scenes of the procedural clips: what there is, how it moves, and how scenes are drawn at random."""

from dataclasses import dataclass, replace
from math import pi

import numpy as np
from numpy.typing import ArrayLike, NDArray

from arvid.training.grammar import COLOURS, SHAPES, Caption, Thing, parse, training_captions, training_pairs

Floats = NDArray[np.floating]

SIZE = 64  # the unit of every length below is one pixel of a 64-pixel frame
FPS = 16
CLIP_FRAMES = 21  # latent frames of a training clip

TEXTURES = (
    "plain", "gradient right", "gradient left", "gradient down", "gradient up", "stripes across", "stripes down"
)  # fmt: skip
MARKINGS = ("none", "dot", "band")
LANDMARKS = ("none", "top left", "top right", "bottom left", "bottom right")

GROWTH = 1.6  # largest size over smallest, of an object that grows and shrinks
REACH = 1.15  # no shape extends further than this from its centre, along x or y, over its radius
RADII, RADII_OF_TWO, GROWING_RADII_OF_TWO = (10.0, 14.0), (8.5, 10.5), (8.0, 9.0)
PAIRS = 8  # of two bodies, from which a scene takes the pair that meets least


@dataclass(frozen=True)
class Body:
    """How an object looks and moves beyond what its caption says; the fields are those of `Scene`."""

    radius: float = 12.0
    marking: str = "none"
    phase_x: float = 0.0
    phase_y: float = 0.25
    period_x: float = 48.0
    period_y: float = 64.0

    def __post_init__(self) -> None:
        if self.marking not in MARKINGS:
            raise ValueError(f"marking is {self.marking!r}; choose one of: {', '.join(MARKINGS)}")
        for name in ("radius", "period_x", "period_y"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive and finite")


@dataclass(frozen=True)
class Scene:
    """Everything that determines a clip.

    `radius` is in pixels of a 64-pixel frame, `period_x` and `period_y` in pixel frames, `phase_x` and
    `phase_y` in turns. A circle has `phase_y` a quarter turn before or after `phase_x`, and one period. What only
    memory keeps: `texture`, `marking`, `landmark` (see `TEXTURES`, `MARKINGS`, `LANDMARKS`) and `radius`.
    From latent frame `change_frame` on, the object has `new_colour` or `new_shape`, or both.
    `second` is the body of the caption's second object, where it has one; such a scene does not change.
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
    second: Body | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("texture", TEXTURES), ("landmark", LANDMARKS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of: {', '.join(allowed)}")
        if (self.second is None) != (self.said.second is None):
            raise ValueError("a caption of two objects needs the body of the second, and one of one object has none")
        if (self.change_frame is None) != (self.new_colour is None and self.new_shape is None):
            raise ValueError("a change needs change_frame together with new_colour or new_shape")
        if self.change_frame is not None and self.second is not None:
            raise ValueError("a scene of two objects does not change; leave change_frame out")
        if self.change_frame is not None and self.change_frame < 1:
            raise ValueError(f"change_frame is {self.change_frame}; the first latent frame that can change is 1")
        assert len(self.bodies)  # which raises for what no body can have
        self.says(self.change_frame or 0)  # raises for an unknown new colour or shape

    @property
    def bodies(self) -> tuple[Body, ...]:
        """One for each of the caption's `things`."""
        first = Body(self.radius, self.marking, self.phase_x, self.phase_y, self.period_x, self.period_y)
        return (first,) if self.second is None else (first, self.second)

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


def sample_scene(
    rng: np.random.Generator, change: bool = False, first_frame_alone: bool = False, two: bool = False
) -> Scene:
    """A random scene, of `two` objects or one, with training captions only; see `scene_for` for the other arguments."""
    captions = training_pairs() if two else training_captions()
    return scene_for(captions[rng.integers(len(captions))], rng, change, first_frame_alone)


def scene_for(caption: str, rng: np.random.Generator, change: bool = False, first_frame_alone: bool = False) -> Scene:
    """A random scene of a caption: sizes, texture, markings, landmark, phases and periods are drawn.

    `change` adds a new colour or shape at a chunk boundary inside the clip: chunks of 3 latent frames, after a first
    chunk of 1 where `first_frame_alone`. Two objects rarely hide each other. Raises ValueError for a caption outside
    the grammar, and for a change of two objects.
    """
    said = parse(caption)
    if change and said.second:
        raise ValueError(f"a scene of two objects does not change: {caption!r}")
    texture = rng.choice(["plain", "gradient", "stripes"])
    first, *second = _bodies(said, rng)
    scene = Scene(
        said=said,
        texture=str(rng.choice([name for name in TEXTURES if name.startswith(texture)])),
        landmark=str(rng.choice(LANDMARKS)),
        second=second[0] if second else None,
        **vars(first),
    )
    if not change:
        return scene
    frame = 3 * int(rng.integers(2, CLIP_FRAMES // 3 - 1)) + int(first_frame_alone)
    allowed = set(training_captions())
    colours = [replace(scene, change_frame=frame, new_colour=word) for word in COLOURS if word != said.colour]
    shapes = [replace(scene, change_frame=frame, new_shape=word) for word in SHAPES if word != said.shape]
    colours, shapes = ([one for one in looks if one.caption(frame) in allowed] for looks in (colours, shapes))
    changed = (colours or shapes) if rng.random() < 0.5 else (shapes or colours)
    return changed[rng.integers(len(changed))]


def _bodies(said: Caption, rng: np.random.Generator) -> list[Body]:
    """A body for each object; of two, the pair of some that meets least."""
    if said.second is None:
        return [_body(said.motion, RADII, rng)]
    radii = [GROWING_RADII_OF_TWO if motion == "grows and shrinks" else RADII_OF_TWO for _, _, motion in said.things]
    pairs = [
        [_body(thing.motion, its, rng) for thing, its in zip(said.things, radii, strict=True)] for _ in range(PAIRS)
    ]
    times = np.arange(0, 64 * FPS, 7)

    def meeting(bodies: list[Body]) -> float:
        one_T3, other_T3 = (track(thing.motion, body, times) for thing, body in zip(said.things, bodies, strict=True))
        distance_T = np.hypot(*(one_T3 - other_T3)[:, :2].T)
        return float((distance_T < np.maximum(one_T3, other_T3)[:, 2]).mean())

    return min(pairs, key=meeting)


def _body(motion: str, radii: tuple[float, float], rng: np.random.Generator) -> Body:
    phase_x, phase_y = rng.random(2)
    if motion == "moves in a circle":
        phase_y = phase_x + rng.choice([-0.25, 0.25])
    short = rng.uniform(72, 96)  # in a chunk, three quarters of a second, an object moves by less than its width
    periods = rng.permutation([short, short * rng.uniform(1.25, 1.6)])  # unlike: alike, a bounce may look a circle
    return Body(
        radius=float(rng.uniform(*radii)),
        marking=str(rng.choice(MARKINGS)),
        phase_x=float(phase_x),
        phase_y=float(phase_y),
        period_x=float(periods[0]),
        period_y=float(periods[1]),
    )


def _fold(turns: Floats) -> Floats:
    """A triangle wave between 0 and 1 of period 1: motion at constant speed, reflected at both ends."""
    return 1 - abs(2 * (turns % 1) - 1)


def trajectory(scene: Scene, frames: ArrayLike, which: int = 0) -> Floats:
    """Centre and radius (x, y, r) of an object at pixel frames [T]: [T, 3], in pixels of a 64-pixel frame.

    `which` is 0 for the first object and 1 for the second.
    """
    return track(scene.said.things[which].motion, scene.bodies[which], frames)


def track(motion: str, body: Body, frames: ArrayLike) -> Floats:
    """As `trajectory`, of a body that moves so."""
    times = np.asarray(frames, dtype=np.float64)
    turns_x = body.phase_x + times / body.period_x
    turns_y = body.phase_y + times / (body.period_x if motion == "moves in a circle" else body.period_y)
    x, y = np.full_like(times, 0.5), np.full_like(times, 0.5)  # 0..1 across the room there is
    radius = np.full_like(times, body.radius)
    reach = REACH * body.radius
    room = SIZE - 2 * reach
    match motion:
        case "bounces around":
            x, y = _fold(turns_x), _fold(turns_y)
        case "moves left and right":
            x, y = _fold(turns_x), y + (body.phase_y % 1 - 0.5)
        case "moves up and down":
            x, y = x + (body.phase_x % 1 - 0.5), _fold(turns_y)
        case "moves in a circle":
            x, y = (0.5 + 0.45 * np.sin(2 * pi * turns) for turns in (turns_x, turns_y))
        case _:
            x = x + (body.phase_y % 1 - 0.5) * (SIZE - 2 * GROWTH * reach) / room
            radius = radius * (1 + (GROWTH - 1) * (0.5 - 0.5 * np.cos(2 * pi * turns_x)))
    return np.stack([reach + room * x, reach + room * y, radius], axis=-1).astype(np.float32)


def largest_radius(thing: Thing, body: Body) -> float:
    """The largest radius that an object ever has, in pixels of a 64-pixel frame."""
    return body.radius * (GROWTH if thing.motion == "grows and shrinks" else 1)
