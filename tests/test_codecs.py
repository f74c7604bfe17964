"""Pages as code words: how far decoding is from what was written, and that words, once made, never change."""

import pytest
import torch
from dense import randn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from arvid.cache.codecs import Codec, Exact, Fp8, Int8, Pages, codecs

SHAPE = 2, 3, 6, 2, 8  # B, F, tokens, h, d
GROUPS = {Int8("tokens"): (2,), Int8("channels"): (4,), Fp8(): (2, 4)}
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
EVERY = [Exact(torch.float32), *GROUPS]

each = pytest.mark.parametrize("codec", GROUPS, ids=str)
every = pytest.mark.parametrize("codec", EVERY, ids=str)


@st.composite
def numbers(draw: st.DrawFn) -> Tensor:
    """[B, F, tokens, h, d] float32 at any scale, some channels and tokens far out, some zero."""
    x = randn(*SHAPE, seed=draw(st.integers(0, 10**6)), dtype=torch.float32) * 10 ** draw(st.floats(-6, 6))
    for dim in draw(st.lists(st.sampled_from([1, 2, 3, 4]), max_size=4)):
        x.select(dim, draw(st.integers(0, SHAPE[dim] - 1))).mul_(draw(st.sampled_from([0, 1e-3, 30, 1e3])))
    return x


def stored(codec: Codec, x: Tensor, count: int = SHAPE[1]) -> Pages:
    pages = Pages(codec, SHAPE[0], *SHAPE[2:], count, "cpu")
    pages.write(slice(0, x.shape[1]), x)
    return pages


def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    """Equal in every bit."""
    return all(x.dtype == y.dtype and torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8))
               for x, y in zip(a, b, strict=True))


@each
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=15)
@given(numbers())
def test_decoding_is_off_by_no_more_than_promised(codec: Codec, dtype: torch.dtype, x: Tensor) -> None:
    top = 448 if codec == Fp8() else 127
    scale = x.double().abs().amax(GROUPS[codec], keepdim=True) / top
    bound = torch.maximum(2.0**-4 * x.double().abs(), 2.0**-10 * scale) if codec == Fp8() else 0.5 * scale
    decoded = codec.decode(codec.encode(x), dtype)
    rounding = torch.finfo(dtype).eps * x.double().abs().maximum(decoded.double().abs())
    assert decoded.dtype is dtype
    assert ((decoded.double() - x.double()).abs() <= 1.0001 * bound + rounding).all()


def test_the_bounds_are_reached() -> None:
    x = torch.zeros(1, 1, 2, 1, 2)
    x[0, 0, :, 0, 0] = torch.tensor([127.0, 40.5])
    assert Int8("tokens").decode(Int8("tokens").encode(x), x.dtype)[0, 0, :, 0, 0].tolist() == [127, 40]
    x[0, 0, :, 0, 0] = torch.tensor([448.0, 17.0])  # next to 17 are 16 and 18
    assert Fp8().decode(Fp8().encode(x), x.dtype)[0, 0, :, 0, 0].tolist() == [448, 16]


@each
@settings(max_examples=15)
@given(numbers(), st.integers(0, 10**6))
def test_a_group_is_encoded_whatever_is_beside_it(codec: Codec, x: Tensor, seed: int) -> None:
    """An outlier costs precision in its own group only."""
    alone = codec.decode(codec.encode(x), x.dtype)
    at = tuple(int(i) for i in torch.randint(0, 10**6, (5,), generator=torch.Generator().manual_seed(seed)))
    at = tuple(i % n for i, n in zip(at, SHAPE, strict=True))
    x[at] = 1e9
    own = torch.zeros(SHAPE, dtype=torch.bool)
    own[tuple(slice(None) if dim in GROUPS[codec] else i for dim, i in enumerate(at))] = True
    assert torch.equal(codec.decode(codec.encode(x), x.dtype)[~own], alone[~own])


@each
@settings(max_examples=15)
@given(numbers(), st.sampled_from(DTYPES))
def test_what_was_decoded_encodes_to_the_same_words(codec: Codec, x: Tensor, dtype: torch.dtype) -> None:
    """If numbers are decoded to the dtype they had; to a coarser one the largest, and with it the scale, is rounded."""
    words, scale = codec.encode(x.to(dtype))
    again, rescaled = codec.encode(codec.decode((words, scale), dtype))
    assert torch.equal(again.float(), words.float())
    assert torch.allclose(rescaled, scale, rtol=torch.finfo(torch.float32).eps, atol=0)


@each
@settings(max_examples=15)
@given(numbers())
def test_words_decoded_to_a_coarser_dtype_settle_at_once(codec: Codec, x: Tensor) -> None:
    first = codec.encode(x)
    second = codec.encode(codec.decode(first, torch.bfloat16))
    assert torch.allclose(second[1], first[1], rtol=2.0**-8, atol=0)
    if codec != Fp8():
        assert (second[0].int() - first[0].int()).abs().max() <= 1
    assert same(codec.encode(codec.decode(second, torch.bfloat16)), second)


@each
@pytest.mark.parametrize("tiny", [0.0, 1e-45, 2.5e-43, 1e-38, 1e-36])
def test_groups_of_next_to_nothing_decode_to_it(codec: Codec, tiny: float) -> None:
    x = randn(*SHAPE, dtype=torch.float32)
    x[1, 2] = tiny
    decoded = codec.decode(codec.encode(x), x.dtype)
    assert (decoded[1, 2] - tiny).abs().max() <= tiny
    assert decoded.isfinite().all()
    assert torch.equal(decoded[0], codec.decode(codec.encode(x[:1]), x.dtype)[0])


@each
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 1e300])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_shows_in_its_group(codec: Codec, wrong: float, dtype: torch.dtype) -> None:
    x = randn(*SHAPE)
    x[1, 2, 3, 1, 4] = wrong
    bad = torch.zeros(SHAPE, dtype=torch.bool)
    bad[tuple(slice(None) if dim in GROUPS[codec] else i for dim, i in enumerate((1, 2, 3, 1, 4)))] = True
    words, scale = codec.encode(x)
    assert torch.equal(scale.isnan().expand(SHAPE), bad), "the scale says it: int8 has no word for it"
    assert torch.equal(codec.decode((words, scale), dtype).isnan(), bad)


@every
def test_pages_are_written_read_and_grown_in_place(codec: Codec) -> None:
    x = randn(*SHAPE, dtype=torch.float32)
    decoded = codec.decode(codec.encode(x), x.dtype)
    pages = stored(codec, x, 5)
    assert pages.count == 5
    assert torch.equal(pages.read(slice(0, 3), x.dtype), decoded)
    assert torch.equal(pages.read(torch.tensor([2, 0, 2]), x.dtype), decoded[:, [2, 0, 2]])
    assert not pages.read(slice(3, 5), x.dtype).any()
    assert pages.read(slice(0), torch.float64).shape == (2, 0, *SHAPE[2:])
    where = [code.data_ptr() for code in pages.codes]
    pages.write(torch.tensor([4, 1]), x[:, :2])
    assert [code.data_ptr() for code in pages.codes] == where
    assert torch.equal(pages.read(slice(0, 5), x.dtype)[:, [0, 1, 2, 4]], decoded[:, [0, 1, 2, 0]])
    before = pages.raw(slice(0, 5))
    pages.grow(2)
    assert pages.count == 7
    assert same(pages.raw(slice(0, 5)), before)
    assert not pages.read(slice(5, 7), x.dtype).any()
    pages.write(slice(5, 7), x[:, 1:])
    assert torch.equal(pages.read(torch.tensor([5, 6]), x.dtype), decoded[:, 1:])


@every
def test_words_move_between_pages_unread(codec: Codec) -> None:
    x = randn(*SHAPE, dtype=torch.float32)
    pages, other = stored(codec, x), Pages(codec, SHAPE[0], *SHAPE[2:], 4, "cpu")
    held = pages.raw(torch.tensor([2, 0]))
    other.put(slice(1, 3), held)
    other.put(torch.tensor([3, 0]), other.raw(torch.tensor([1, 2])))
    assert same(other.raw(torch.tensor([3, 0])), held)
    assert torch.equal(other.read(torch.tensor([0, 3]), x.dtype), pages.read(torch.tensor([0, 2]), x.dtype))
    pages.write(torch.tensor([0, 2]), 0 * x[:, :2])
    assert same(other.raw(torch.tensor([3, 0])), held), "words read by a tensor of pages are copies"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact_pages_of_the_dtype_asked_for_are_views(dtype: torch.dtype) -> None:
    x = randn(*SHAPE, dtype=dtype)
    pages = stored(Exact(dtype), x)
    view = pages.read(slice(1, 3), dtype)
    assert torch.equal(view, x[:, 1:])
    assert view.data_ptr() == pages.codes[0][:, 1].data_ptr()
    rounded = stored(Exact(torch.bfloat16), x).read(slice(0, 3), dtype)
    assert torch.equal(rounded, x.bfloat16().to(dtype))


@pytest.mark.parametrize(("name", "keys", "values"), [
    (None, 4 * 1560 * 12 * 128, 4 * 1560 * 12 * 128),
    ("bf16", 2 * 1560 * 12 * 128, 2 * 1560 * 12 * 128),
    ("int8", 1560 * 12 * 128 + 4 * 12 * 128, 1560 * 12 * 128 + 4 * 1560 * 12),
    ("fp8", 1560 * 12 * 128 + 4 * 12, 1560 * 12 * 128 + 4 * 12),
])  # fmt: skip
def test_bytes_of_a_page(name: str | None, keys: int, values: int) -> None:
    pages = [Pages(codec, 1, 1560, 12, 128, 1, "cpu") for codec in codecs(name, torch.float32)]
    assert [page.nbytes for page in pages] == [keys, values]
    if name in ("int8", "fp8"):
        assert keys + values < 0.51 * 2 * (2 * 1560 * 12 * 128), "about half of bf16"


@every
def test_the_layout_is_that_of_what_is_encoded(codec: Codec) -> None:
    x = randn(*SHAPE)
    expected = [(dtype, tuple(n if dim in kept else 1 for dim, n in enumerate(SHAPE))) for dtype, kept in codec.layout]
    assert [(code.dtype, tuple(code.shape)) for code in codec.encode(x)] == expected


def test_the_codecs_by_name() -> None:
    assert codecs(None, torch.float16) == (Exact(torch.float16),) * 2
    assert codecs("bf16", torch.float16) == (Exact(torch.bfloat16),) * 2
    assert codecs("int8", torch.float16) == (Int8("tokens"), Int8("channels"))
    assert codecs("fp8", torch.float16) == (Fp8(), Fp8())


@pytest.mark.parametrize("name", ["int4", "", "BF16"])
def test_an_unknown_name_lists_the_known(name: str) -> None:
    with pytest.raises(ValueError, match=rf"no codec is called '{name}': .*bf16, int8, fp8, or None"):
        codecs(name, torch.float32)
    with pytest.raises(ValueError, match="'frames': a scale is shared by 'tokens' or by 'channels'"):
        Int8("frames")  # type: ignore[reportArgumentType]


@every
def test_words_of_another_shape_or_dtype_are_refused(codec: Codec) -> None:
    x = randn(*SHAPE, dtype=torch.float32)
    pages = stored(codec, x)
    for index, wrong in ((slice(0, 3), x[:, :1]), (slice(0, 3), x[:1]), (torch.tensor([0]), x[..., :1]),
                         (slice(2, 5), x), (torch.tensor([1]), x[:, :0])):  # fmt: skip
        with pytest.raises(ValueError, match=r"pages of .* take code words"):
            pages.write(index, wrong)
    with pytest.raises(ValueError, match=r"3 pages of .* take code words"):
        pages.put(slice(0, 3), tuple(code.double() for code in pages.codes))
    with pytest.raises(ValueError, match="take code words"):
        pages.put(slice(0, 3), ())


class NoSync(TorchDispatchMode):
    """Refuses operations whose result the host waits for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal"), func
        return func(*args, **kwargs or {})


@every
def test_nothing_waits_for_the_device(codec: Codec) -> None:
    x = randn(*SHAPE, dtype=torch.bfloat16)
    pages = Pages(codec, SHAPE[0], *SHAPE[2:], 4, "cpu")
    with NoSync():
        for index in (slice(1, 4), torch.tensor([3, 0, 2])):
            pages.write(index, x)
            pages.read(index, x.dtype)
            pages.put(index, pages.raw(index))
