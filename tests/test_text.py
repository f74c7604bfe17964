"""The umT5 encoder against the recorded original, its file names, the cleaning rules and the bundled tokenizer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from arvid.models.specs import TextSpec
from arvid.models.text import (
    BUNDLED_GRAMMAR,
    BUNDLED_TOKENIZER,
    TextEncoder,
    build_umt5,
    clean,
    from_wan_names,
    load_tokenizer,
    sentences,
    to_wan_names,
    train_tokenizer,
    umt5_config,
)
from arvid.training.grammar import training_captions, training_pairs

GOLDEN = Path(__file__).parent / "golden" / "t5.safetensors"
ONE = BUNDLED_GRAMMAR.splitlines()[0]  # the sentences of one object
WORDS = sorted(set(BUNDLED_GRAMMAR.translate(str.maketrans("{|}", "   ")).split()))
PROMPT = "a red ball bounces around on a navy background"
SPEC = TextSpec(vocab_size=35, dim=16, attention_dim=16, ffn_dim=32, num_heads=2, num_layers=2)
TOKENIZER = load_tokenizer(BUNDLED_TOKENIZER)


@pytest.fixture(scope="module")
def golden():
    """The recording: spec, weights under Wan's names, ids, mask and output."""
    with safe_open(GOLDEN, "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    spec = TextSpec(config["vocab"], config["dim"], config["dim_attn"], config["dim_ffn"], config["num_heads"],
                    config["num_layers"], config["num_buckets"])
    weights = {key.removeprefix("weights."): tensors.pop(key) for key in list(tensors) if key.startswith("weights.")}
    return spec, weights, tensors


@pytest.fixture(scope="module")
def golden_model(golden):
    spec, weights, _ = golden
    model = build_umt5(spec).eval()
    model.load_state_dict(from_wan_names(weights), strict=True)
    return model


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(build_umt5(SPEC), TOKENIZER, length=16, grammar=ONE).eval()


# The network


def test_encoder_equals_the_recorded_original(golden, golden_model) -> None:
    _, _, recorded = golden
    encoder = TextEncoder(golden_model, TOKENIZER, length=recorded["ids"].shape[1]).eval()
    with torch.no_grad():
        out = encoder(recorded["ids"], recorded["mask"])
    assert (out - recorded["out"]).abs().max() <= 1e-5
    padding = recorded["mask"] == 0
    assert padding.any()
    assert not out[padding].any()


def test_what_follows_the_mask_changes_nothing(golden, golden_model) -> None:
    _, _, recorded = golden
    encoder = TextEncoder(golden_model, TOKENIZER, length=recorded["ids"].shape[1]).eval()
    other_ids = torch.where(recorded["mask"] == 0, 7, recorded["ids"])
    with torch.no_grad():
        torch.testing.assert_close(encoder(other_ids, recorded["mask"]), encoder(recorded["ids"], recorded["mask"]))


def test_every_layer_has_its_own_position_bias(golden, golden_model) -> None:
    spec, weights, recorded = golden
    for block in range(spec.num_layers):
        state = dict(weights)
        name = f"blocks.{block}.pos_embedding.embedding.weight"
        state[name] = state[name] + torch.arange(spec.num_buckets)[:, None] * 0.1
        model = build_umt5(spec).eval()
        model.load_state_dict(from_wan_names(state), strict=True)
        with torch.no_grad():
            out = TextEncoder(model, TOKENIZER, recorded["ids"].shape[1])(recorded["ids"], recorded["mask"])
        assert (out - recorded["out"]).abs().max() > 1e-3, f"the bias of block {block} is not used"


def test_config_refuses_a_width_heads_cannot_share() -> None:
    with pytest.raises(ValueError, match=r"attention_dim=50 .* num_heads=6"):
        umt5_config(TextSpec(35, 16, 50, 32, 6, 1))


def test_full_size_encoder_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = build_umt5(TextSpec(256384, 4096, 4096, 10240, 64, 24))
    assert sum(parameter.numel() for parameter in model.parameters()) == 5_680_910_336
    assert len(to_wan_names(model.state_dict())) == 242


# File names


def test_key_map_is_a_bijection_onto_the_models_keys(golden, golden_model) -> None:
    _, weights, _ = golden
    renamed = from_wan_names(weights)
    assert set(renamed) == set(golden_model.state_dict())
    assert renamed["shared.weight"] is renamed["encoder.embed_tokens.weight"]
    assert len({id(tensor) for tensor in renamed.values()}) == len(weights)
    back = to_wan_names(renamed)
    assert set(back) == set(weights)
    assert all(back[key] is weights[key] for key in weights)


def test_key_map_names_missing_and_unexpected_keys(golden) -> None:
    _, weights, _ = golden
    for key in weights:
        with pytest.raises(ValueError, match="missing") as caught:
            from_wan_names({name: tensor for name, tensor in weights.items() if name != key})
        assert key in str(caught.value)
    with pytest.raises(ValueError, match=r"unexpected \['head\.bias'\]"):
        from_wan_names(weights | {"head.bias": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"unexpected \['blocks\.9\.attn\.q\.weight'\]"):
        from_wan_names(weights | {"blocks.9.attn.q.weight": torch.zeros(1)})
    untied = {key: tensor for key, tensor in from_wan_names(weights).items() if key != "encoder.embed_tokens.weight"}
    with pytest.raises(ValueError, match=r"missing \['encoder\.embed_tokens\.weight'\]"):
        to_wan_names(untied)


# Cleaning


@pytest.mark.parametrize(("given_text", "cleaned"), [
    ("  a fox\n\truns\u00a0 far ", "a fox runs far"),
    ("salt &amp; pepper", "salt & pepper"),
    ("&amp;lt;b&amp;gt;", "<b>"),
    ("&amp;amp;amp;", "&amp;"),
    ("A Fox RUNS", "A Fox RUNS"),
    ("“a fox” ‘runs’ l’été", "\"a fox\" 'runs' l'été"),
    ("Ａ　ﬁne，fox！", "A fine,fox!"),
    ("e\u0301te\u0301", "été"),
    ("一只狐狸", "一只狐狸"),
    (" \n ", ""),
])
def test_cleaning_rules(given_text: str, cleaned: str) -> None:
    assert clean(given_text) == cleaned


@given(st.text(alphabet="ab é“’，\t\n\u3000ﬁ", max_size=30))
def test_clean_text_stays_as_it_is(text: str) -> None:
    assert clean(clean(text)) == clean(text)


# The tokenizer


def test_bundled_tokenizer_has_one_piece_a_word() -> None:
    assert (TOKENIZER.pad_id(), TOKENIZER.eos_id(), TOKENIZER.unk_id()) == (0, 1, 2)
    assert TOKENIZER.vocab_size() == len(WORDS) + 3
    ids = [TOKENIZER.encode(word) for word in WORDS]
    assert sorted(ids) == [[i] for i in range(3, len(WORDS) + 3)]
    prompts = sentences(ONE)
    for prompt, pieces in zip(prompts, TOKENIZER.encode(prompts), strict=True):
        assert pieces == [TOKENIZER.encode(word)[0] for word in prompt.split()]


def test_one_object_has_720_sentences() -> None:
    prompts = sentences(ONE)
    assert len(prompts) == len(set(prompts)) == 8 * 3 * 5 * 6
    assert prompts[0] == "a red ball bounces around on a black background"
    assert "a cyan triangle grows and shrinks on a beige background" in prompts
    assert sentences("no choice") == ["no choice"]


def test_two_objects_add_sentences_and_no_word(tmp_path: Path) -> None:
    prompts = sentences(BUNDLED_GRAMMAR)
    assert len(prompts) == len(set(prompts)) == 720 + 120 * 120 * 6
    assert prompts[:720] == sentences(ONE)
    assert set(training_pairs()) < set(prompts)
    train_tokenizer(training_captions() + training_pairs(), tmp_path / "pairs.model")
    tokenizer = load_tokenizer(tmp_path / "pairs.model")
    assert tokenizer.vocab_size() == len(WORDS) + 3
    assert max(map(len, tokenizer.encode(prompts, add_eos=True))) == 20


@pytest.mark.parametrize("motion", ["bounces around", "moves up and down"])
def test_a_model_of_one_object_refuses_two(encoder: TextEncoder, motion: str) -> None:
    prompt = f"a red ball bounces around and a blue square {motion} on a navy background"
    with pytest.raises(ValueError, match=r"has 15 words, .* more than 11|has 18 tokens, .* reads 16"):
        encoder.encode([prompt])
    of_two = TextEncoder(encoder.model, TOKENIZER, length=20, grammar=BUNDLED_GRAMMAR)
    assert of_two.tokenize([prompt])[1].sum() == len(prompt.split()) + 1


def test_training_is_deterministic_and_gives_the_committed_file(tmp_path: Path) -> None:
    captions = sentences(BUNDLED_GRAMMAR)
    train_tokenizer(captions, tmp_path / "once.model")
    train_tokenizer((f" {caption} " for caption in reversed(captions * 2)), tmp_path / "again.model")
    assert (tmp_path / "once.model").read_bytes() == (tmp_path / "again.model").read_bytes()
    assert (tmp_path / "once.model").read_bytes() == BUNDLED_TOKENIZER.read_bytes()


def test_tokenizer_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="sentencepiece model"):
        load_tokenizer(tmp_path / "none.model")
    with pytest.raises(ValueError, match="no captions"):
        train_tokenizer([" "], tmp_path / "none.model")
    (tmp_path / "junk.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"junk\.model is not a sentencepiece model"):
        load_tokenizer(tmp_path / "junk.model")


# Prompts in, text out


def test_tokenize_ends_and_pads(encoder: TextEncoder) -> None:
    ids_BL, mask_BL = encoder.tokenize([PROMPT, f"  {PROMPT}\n", "a ball"])
    expected = [*TOKENIZER.encode(PROMPT), 1]
    assert ids_BL[0].tolist() == expected + [0] * (16 - len(expected))
    assert mask_BL[0].tolist() == [1] * len(expected) + [0] * (16 - len(expected))
    assert ids_BL[1].equal(ids_BL[0])
    assert mask_BL.sum(1).tolist() == [10, 10, 3]


@settings(max_examples=20)
@given(st.lists(st.sampled_from(sentences(ONE)), min_size=1, max_size=4))
def test_rows_are_independent_and_zero_past_the_prompt(encoder: TextEncoder, prompts: list[str]) -> None:
    text_BLD = encoder.encode(prompts)
    assert text_BLD.shape == (len(prompts), 16, SPEC.dim)
    for row, prompt in zip(text_BLD, prompts, strict=True):
        torch.testing.assert_close(row, encoder.encode([prompt])[0], atol=1e-5, rtol=0)
        used = len(prompt.split()) + 1
        assert row[:used].any(dim=1).all()
        assert not row[used:].any()


def test_words_and_their_order_matter(encoder: TextEncoder) -> None:
    prompts = [PROMPT, PROMPT.replace("red", "blue"), "a navy ball bounces around on a red background"]
    one, two, three = encoder.encode(prompts)
    assert (one - two).abs().max() > 1e-2
    assert (one - three).abs().max() > 1e-2


def test_gradients_in_train_mode_only() -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(build_umt5(SPEC), TOKENIZER, length=16)
    encoder.train().encode([PROMPT]).square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    assert encoder.model.shared.weight is encoder.model.encoder.embed_tokens.weight
    assert not encoder.eval().encode([PROMPT]).requires_grad
    with torch.no_grad():
        assert not encoder.train().encode([PROMPT]).requires_grad


def test_unknown_words_are_listed_with_the_grammar(encoder: TextEncoder) -> None:
    with pytest.raises(ValueError, match="words") as caught:
        encoder.encode([PROMPT, "a purple zebra bounces over a navy background"])
    message = str(caught.value)
    assert "'over', 'zebra'" in message
    assert ONE in message
    assert "'purple'" not in message


@pytest.mark.parametrize("written", [PROMPT.capitalize(), PROMPT.upper(), f"{PROMPT}.", f" A{PROMPT[1:]} . "])
def test_a_closed_vocabulary_ignores_case_and_a_final_full_stop(encoder: TextEncoder, written: str) -> None:
    assert encoder.tokenize([written])[0].equal(encoder.tokenize([PROMPT])[0])


def test_without_a_grammar_case_and_full_stop_reach_the_tokenizer() -> None:
    free = TextEncoder(build_umt5(SPEC), TOKENIZER, length=16)
    (plain, _), (capital, _), (stop, _) = (free.tokenize([p]) for p in (PROMPT, PROMPT.upper(), f"{PROMPT}."))
    assert not capital.equal(plain)
    assert not stop.equal(plain)


def test_bad_prompts(encoder: TextEncoder) -> None:
    for empty in ("", " \n", "&nbsp;", ".", " . "):
        with pytest.raises(ValueError, match="is empty"):
            encoder.encode([PROMPT, empty])
    with pytest.raises(ValueError, match="no prompt given"):
        encoder.encode([])
    with pytest.raises(TypeError, match="list of strings"):
        encoder.encode(PROMPT)
    with pytest.raises(TypeError, match="list of strings"):
        encoder.encode([PROMPT, None])  # pyright: ignore[reportArgumentType]
    encoder.encode(["a " * 11])
    with pytest.raises(ValueError, match=r"has 15 words, and no prompt of this model more than 11; its prompts are: a"):
        encoder.encode(["a " * 15])
    with pytest.raises(ValueError, match=r"17 tokens.* reads 16"):
        encoder.encode(["a " * 16])


def test_encoder_refuses_a_tokenizer_that_does_not_fit() -> None:
    small = build_umt5(TextSpec(34, 16, 16, 32, 2, 1))
    with pytest.raises(ValueError, match="35 pieces but the encoder embeds 34"):
        TextEncoder(small, TOKENIZER, 16)
    with pytest.raises(ValueError, match=r"does not know \['zebra'\] of the grammar"):
        TextEncoder(build_umt5(SPEC), TOKENIZER, 16, grammar="a {ball|zebra}")
    with pytest.raises(ValueError, match="length=0"):
        TextEncoder(build_umt5(SPEC), TOKENIZER, 0)


def test_import_leaves_transformers_alone() -> None:
    code = "import sys, arvid.models.text; sys.exit('transformers' in sys.modules or 'sentencepiece' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
