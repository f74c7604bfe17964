"""The procedural clips: what they show, what their captions say, and what the held-out split keeps apart."""

import hashlib
from dataclasses import replace
from math import pi, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arvid.training import clips
from arvid.training.clips import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, Caption, Scene, Thing, parse, render
from arvid.training.data import training_clips

SEEDS = st.integers(0, 2**32 - 1)
BALL = Caption("red", "ball", "moves left and right", "navy")


def scene_of(seed: int, **kwargs: bool) -> Scene:
    return clips.sample_scene(np.random.default_rng(seed), **kwargs)


def object_mask(scene: Scene, frames: list[int]) -> np.ndarray:
    """Pixels that two colours of one object make different, [T, H, W]."""
    other = replace(scene, said=replace(scene.said, colour="cyan" if scene.said.colour != "cyan" else "red"))
    return (render(scene, frames) != render(other, frames)).any(-1)


def test_palette_is_the_one_promised():
    assert COLOURS == {
        "red": (219, 31, 31),
        "green": (33, 166, 51),
        "blue": (38, 77, 230),
        "yellow": (242, 217, 26),
        "orange": (250, 128, 13),
        "purple": (140, 38, 179),
        "pink": (250, 128, 191),
        "cyan": (26, 204, 217),
    }
    assert BACKGROUNDS == {
        "black": (8, 8, 8),
        "white": (242, 242, 242),
        "gray": (128, 128, 128),
        "brown": (92, 56, 31),
        "navy": (13, 20, 77),
        "beige": (230, 209, 166),
    }


def test_every_caption_reads_back():
    captions = clips.all_captions()
    assert len(captions) == len(set(captions)) == 555
    assert all(str(parse(text)) == text for text in captions)
    assert parse("  A Orange  ball moves in a circle on a navy background. ") == Caption(
        "orange", "ball", "moves in a circle", "navy"
    )


@pytest.mark.parametrize(
    ("prompt", "part"),
    [
        ("a crimson ball moves in a circle on a navy background", "unknown words: crimson"),
        ("an orange ball moves in a circle on a navy background", "unknown words: an"),
        ("a fox runs", "unknown words: fox, runs"),
        ("a red ball on a navy background moves in a circle", "known words, but not in the form"),
        ("a navy ball moves in a circle on a red background", "known words, but not in the form"),
        ("", "known words, but not in the form"),
    ],
)
def test_other_prompts_raise_and_show_the_grammar(prompt, part):
    with pytest.raises(ValueError, match=part) as raised:
        parse(prompt)
    message = str(raised.value)
    assert all(word in message for word in (*COLOURS, *SHAPES, *MOTIONS, *BACKGROUNDS))


def test_caption_of_other_words_raises():
    with pytest.raises(ValueError, match="colour is 'mauve'; choose one of: red"):
        Caption("mauve", "ball", "moves in a circle", "navy")


def test_two_objects_read_back():
    said = parse("A red ball moves left and right and a blue square grows and shrinks on a navy background.")
    assert said.things == (Thing("red", "ball", "moves left and right"), Thing("blue", "square", "grows and shrinks"))
    assert said == Caption("red", "ball", "moves left and right", "navy", said.things[1])
    assert all(str(parse(text)) == text for text in clips.training_pairs()[::101])
    with pytest.raises(ValueError, match="both objects are red; give two objects different colours"):
        parse("a red ball moves up and down and a red square moves up and down on a navy background")
    with pytest.raises(ValueError, match="shape is 'star'"):
        replace(BALL, second=Thing("blue", "star", "moves up and down"))


def test_split_is_fixed_disjoint_and_leaves_every_word_in_training():
    training, held_out = clips.training_captions(), clips.held_out_captions()
    assert len(held_out) == len(set(held_out)) == clips.HELD_OUT == 100
    assert not set(training) & set(held_out)
    fixed = hashlib.sha256("\n".join(held_out).encode()).hexdigest()
    assert fixed == "30a0da0320920115b00a42c5a46743806043f0f156ff2e6205e0d996778fecfc"
    words = {word for text in clips.all_captions() for word in text.split()}
    assert {word for text in training for word in text.split()} == words


def test_pairs_are_held_out_in_both_orders_and_made_of_training_captions():
    training, held_out = set(clips.training_pairs()), clips.held_out_pairs()
    singles = set(clips.training_captions())
    assert len(held_out) == len(set(held_out)) == clips.HELD_OUT_PAIRS == 20
    for text in (*held_out, *sorted(training)[::97]):
        said = parse(text)
        first, second = said.things
        turned = str(Caption(*second, said.background, first))
        assert (text in training) == (turned in training) == (text not in held_out)
        assert {f"{thing} on a {said.background} background" for thing in said.things} <= singles
        assert clips.contrast(first.colour, second.colour) >= clips.MIN_CONTRAST


def test_training_leaves_out_the_weak_pairs_of_colours():
    pairs = {(colour, ground) for colour in COLOURS for ground in BACKGROUNDS}
    trained = {(said.colour, said.background) for said in map(parse, clips.training_captions())}
    weak = pairs - trained
    assert trained == {pair for pair in pairs if clips.contrast(*pair) >= clips.MIN_CONTRAST}
    assert len(weak) == 11
    assert {("yellow", "white"), ("yellow", "beige"), ("pink", "gray"), ("purple", "gray"), ("blue", "navy")} <= weak
    assert ("red", "navy") not in weak
    of_two = {said.colour + " " + said.things[1].colour for said in map(parse, clips.training_pairs())}
    assert len(of_two) == 2 * 22
    assert not of_two & {"orange red", "orange yellow", "blue purple", "pink orange"}


@given(SEEDS, st.booleans(), st.booleans())
@settings(max_examples=200)
def test_sampled_scenes_say_only_training_captions(seed, change, first_frame_alone):
    scene = scene_of(seed, change=change, first_frame_alone=first_frame_alone)
    assert {text for _, text in scene.captions()} <= set(clips.training_captions())
    assert len(scene.captions()) == 1 + change
    assert 10 <= scene.radius <= 14
    assert scene == scene_of(seed, change=change, first_frame_alone=first_frame_alone)
    assert scene.second is None
    if change:
        assert scene.change_frame is not None
        assert scene.change_frame % 3 == (1 if first_frame_alone else 0)
        assert 0 < scene.change_frame < 21
        assert scene.caption(scene.change_frame) != scene.caption(scene.change_frame - 1) == scene.caption()


@given(SEEDS)
@settings(max_examples=40)
def test_two_objects_stay_apart_within_the_frame_and_each_has_its_own_traits(seed):
    scene = scene_of(seed, two=True)
    assert scene == scene_of(seed, two=True)
    assert scene.captions() == [(0, scene.caption())]
    assert scene.caption() in set(clips.training_pairs())
    first, second = scene.bodies
    assert all(8 <= body.radius <= 10.5 for body in scene.bodies)
    assert (first.phase_x, first.period_x, first.period_y) != (second.phase_x, second.period_x, second.period_y)
    frames = np.r_[0:800, 10**6 : 10**6 + 400]
    one, other = (clips.trajectory(scene, frames, which) for which in (0, 1))
    for x, y, radius in (one.T, other.T):
        assert min((x - clips.REACH * radius).min(), (y - clips.REACH * radius).min()) >= -1e-3
        assert max((x + clips.REACH * radius).max(), (y + clips.REACH * radius).max()) <= 64 + 1e-3
    assert (np.hypot(*(one - other)[:, :2].T) < 4).mean() < 0.1


@given(SEEDS, st.integers(0, 10**5))
@settings(max_examples=20)
def test_two_objects_are_each_alone_where_they_do_not_meet_and_the_smaller_is_in_front(seed, frame):
    scene = scene_of(seed, two=True)
    (image,) = render(scene, [frame])
    alone, cover = [], []
    for thing, body in zip(scene.said.things, scene.bodies, strict=True):
        said = Caption(*thing, scene.said.background)
        one = Scene(said, texture=scene.texture, landmark=scene.landmark, **vars(body))
        alone.append(render(one, [frame])[0])
        cover.append((alone[-1] != render(replace(one, radius=1e-3, marking="none"), [frame])[0]).any(-1))
    largest = [clips.trajectory(scene, range(200), which)[:, 2].max() for which in (0, 1)]
    front = int(largest[1] <= largest[0])
    dot = np.hypot(*(np.indices((64, 64)) + 0.5 - clips.trajectory(scene, [frame], front)[0, [1, 0], None, None])) < 3
    np.testing.assert_array_equal(image[dot], alone[front][dot])
    for which in (0, 1):
        only = cover[which] & ~cover[1 - which]
        np.testing.assert_array_equal(image[only], alone[which][only])


@pytest.mark.parametrize(("alone", "change"), [(False, True), (True, True)])
def test_two_objects_do_not_change(alone, change):
    caption = clips.held_out_pairs()[0]
    with pytest.raises(ValueError, match="a scene of two objects does not change"):
        clips.scene_for(caption, np.random.default_rng(0), change, alone)
    scene = clips.scene_for(caption, np.random.default_rng(0))
    with pytest.raises(ValueError, match="does not change; leave change_frame out"):
        replace(scene, change_frame=6, new_shape="ball")
    with pytest.raises(ValueError, match="needs the body of the second"):
        replace(scene, second=None)


def test_a_track_repeats_after_its_period_at_any_horizon():
    for motion in MOTIONS:
        scene = Scene(replace(BALL, motion=motion), period_x=40.0, period_y=60.0)
        first, later = (clips.trajectory(scene, np.arange(120) + start) for start in (0, 120 * 10**4))
        np.testing.assert_allclose(first, later, atol=1e-4)


def test_a_tenth_of_training_clips_has_two_objects_and_another_tenth_a_change():
    kinds = [(scene, alone) for scene, alone, _ in training_clips(200, seed=0)]
    two = np.array([scene.second is not None for scene, _ in kinds])
    changed = np.array([scene.change_frame is not None for scene, _ in kinds])
    assert not (two & changed).any()
    assert 0.05 < two.mean() < 0.15
    assert 0.05 < changed.mean() < 0.15
    held_out = {*clips.held_out_captions(), *clips.held_out_pairs()}
    assert not held_out & {text for scene, _ in kinds for _, text in scene.captions()}
    for scene, alone in kinds:
        assert scene.change_frame is None or scene.change_frame % 3 == int(alone)


def test_scene_for_makes_any_caption_with_every_unnamed_trait():
    rng = np.random.default_rng(0)
    caption = clips.held_out_captions()[0]
    scenes = [clips.scene_for(caption, rng) for _ in range(200)]
    assert {scene.caption() for scene in scenes} == {caption}
    for name, values in (("texture", clips.TEXTURES), ("marking", clips.MARKINGS), ("landmark", clips.LANDMARKS)):
        assert {getattr(scene, name) for scene in scenes} == set(values)
    with pytest.raises(ValueError, match="unknown words: crimson"):
        clips.scene_for("a crimson ball moves in a circle on a navy background", rng)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"texture": "tartan"}, "texture is 'tartan'; choose one of: plain"),
        ({"landmark": "middle"}, "landmark is 'middle'"),
        ({"radius": -1.0}, "radius is -1.0; it must be positive"),
        ({"period_x": float("nan")}, "period_x is nan"),
        ({"change_frame": 3}, "change_frame together with"),
        ({"new_colour": "blue"}, "change_frame together with"),
        ({"change_frame": 0, "new_colour": "blue"}, "change_frame is 0"),
        ({"change_frame": 3, "new_shape": "star"}, "shape is 'star'; choose one of: ball"),
    ],
)
def test_impossible_scenes_raise(change, part):
    with pytest.raises(ValueError, match=part):
        Scene(BALL, **change)


@given(SEEDS, st.lists(st.integers(0, 10**6), min_size=1, max_size=4), st.booleans())
@settings(max_examples=40)
def test_any_frame_at_any_horizon_is_the_same_alone_and_within_a_clip(seed, frames, two):
    scene = scene_of(seed, change=not two, two=two)
    video_THWC = render(scene, frames)
    assert video_THWC.shape == (len(frames), 64, 64, 3)
    assert video_THWC.dtype == np.uint8
    for frame, image_HWC in zip(frames, video_THWC, strict=True):
        np.testing.assert_array_equal(render(scene, [frame])[0], image_HWC)


@given(SEEDS)
@settings(max_examples=60)
def test_the_object_never_leaves_the_frame(seed):
    scene = scene_of(seed)
    x, y, radius = clips.trajectory(scene, np.r_[0:400, 10**6 : 10**6 + 400]).T
    assert min((x - clips.REACH * radius).min(), (y - clips.REACH * radius).min()) >= 0
    assert max((x + clips.REACH * radius).max(), (y + clips.REACH * radius).max()) <= 64
    mask_THW = object_mask(scene, [0, 17, 40])
    assert not mask_THW[:, [0, -1]].any(axis=(0, 1)).all()
    assert mask_THW.any((1, 2)).all()


@pytest.mark.parametrize(("shape", "area"), [("ball", pi), ("square", 1.8**2), ("triangle", 1.3**2 * 0.75 * sqrt(3))])
@pytest.mark.parametrize("radius", [10.0, 13.7])
def test_area_is_the_shapes_own(shape, area, radius):
    """Coverage, summed: of a red object on navy, red measures how much of each pixel the object takes."""
    scene = Scene(replace(BALL, shape=shape), radius=radius)
    red = render(scene, range(0, 40, 3))[..., 0].astype(float)
    covered = ((red - 13) / (219 - 13)).sum((1, 2))
    np.testing.assert_allclose(covered, area * radius**2, rtol=0.02)


@pytest.mark.parametrize("motion", MOTIONS)
def test_each_motion_is_what_its_name_says(motion):
    for seed in range(20):
        scene = clips.scene_for(f"a red ball {motion} on a navy background", np.random.default_rng(seed))
        x, y, radius = clips.trajectory(scene, np.arange(0, 160, 0.25)).T  # more than the longest period
        moves = [np.ptp(track) > 10 for track in (x, y)]
        assert (
            moves
            == {
                "bounces around": [True, True],
                "moves left and right": [True, False],
                "moves up and down": [False, True],
                "moves in a circle": [True, True],
                "grows and shrinks": [False, False],
            }[motion]
        )
        assert np.ptp(radius) == (pytest.approx(0.6 * scene.radius, rel=0.01) if motion == "grows and shrinks" else 0)
        if motion == "moves in a circle":
            from_centre = np.hypot(x - 32, y - 32)
            np.testing.assert_allclose(from_centre, from_centre[0], rtol=1e-5)
        assert max(np.abs(np.diff(track)).max() for track in (x, y)) * 4 < 3  # pixels a frame


@given(SEEDS)
@settings(max_examples=40)
def test_mean_background_stays_near_the_palette(seed):
    scene = replace(scene_of(seed), landmark="none")
    frames = [0, 30, 60]
    other = replace(scene, texture="plain")
    seen = np.pad(object_mask(scene, frames).any(0), 1)  # a pixel wider: the object's edge is anti-aliased
    free = ~np.any([seen[1 + y : 65 + y, 1 + x : 65 + x] for y in (-1, 0, 1) for x in (-1, 0, 1)], axis=0)
    plain = render(other, [0])[0][free].astype(int)
    assert np.abs(plain - BACKGROUNDS[scene.said.background]).max() == 0
    everywhere = clips._background(scene, 64).mean((0, 1))
    assert np.abs(everywhere - BACKGROUNDS[scene.said.background]).max() <= clips.TEXTURE_DEPTH - 7.5
    textured = render(scene, [0])[0][free].astype(int) - BACKGROUNDS[scene.said.background]
    assert np.abs(textured).max() <= 2 * clips.TEXTURE_DEPTH


@given(SEEDS, st.booleans())
@settings(max_examples=30)
def test_a_change_begins_with_the_first_pixel_frame_of_its_latent_frame(seed, first_frame_alone):
    scene = scene_of(seed, change=True, first_frame_alone=first_frame_alone)
    assert scene.change_frame is not None
    begins = 4 * scene.change_frame - 3
    after = parse(scene.caption(scene.change_frame))
    plain = replace(scene, change_frame=None, new_colour=None, new_shape=None)
    frames = range(begins - 4, begins + 4)
    expected = np.concatenate([render(plain, frames[:4]), render(replace(plain, said=after), frames[4:])])
    np.testing.assert_array_equal(render(scene, frames), expected)
    assert clips.latent_frame_of(begins) == scene.change_frame == clips.latent_frame_of(begins - 1) + 1


def test_latent_frames_hold_one_pixel_frame_and_then_four_each():
    assert clips.pixel_frames(21) == 81
    assert clips.latent_frame_of(np.arange(9)).tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_landmark_and_marking_stand_out():
    for background, (ground, tone) in ((name, (rgb, clips.landmark_colour(name))) for name, rgb in BACKGROUNDS.items()):
        assert np.linalg.norm(tone - ground) > 130
        assert min(np.linalg.norm(tone - rgb) for rgb in COLOURS.values()) > 60, background
    for said in map(parse, clips.all_captions()):
        for marking in ("dot", "band"):
            colour = clips.marking_colour(said.colour, said.background, marking)
            assert np.linalg.norm(colour - COLOURS[said.colour]) > 100
            assert marking == "dot" or np.linalg.norm(colour - BACKGROUNDS[said.background]) > 100


def test_other_sizes_show_the_same():
    scene = replace(scene_of(3), landmark="top left", texture="stripes down", marking="dot")
    fine = render(scene, [0, 20], size=128).reshape(2, 64, 2, 64, 2, 3).mean((2, 4))
    assert np.abs(fine - render(scene, [0, 20])).mean() < 1


def test_bad_requests_raise_and_none_is_empty():
    scene = scene_of(0)
    assert render(scene, []).shape == (0, 64, 64, 3)
    with pytest.raises(ValueError, match="pixel frame -1 asked for"):
        render(scene, [3, -1])
    with pytest.raises(ValueError, match="size is 4"):
        render(scene, [0], size=4)
