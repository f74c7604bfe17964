"""A complete model of a few thousand random weights, for tests of what surrounds the networks."""

from __future__ import annotations

import torch

from arvid.models.dit import CausalDiT
from arvid.models.specs import Card, DiTSpec, TextSpec, VAESpec
from arvid.models.text import BUNDLED_GRAMMAR, BUNDLED_TOKENIZER, TextEncoder, build_umt5, load_tokenizer
from arvid.models.vae import WanVAE
from arvid.models.weights import Parts

CARD = Card(
    name="random",
    dit=DiTSpec(
        dim=16, ffn_dim=32, num_heads=2, num_blocks=2, in_channels=4, out_channels=4, text_dim=16, text_length=16,
        freq_dim=16,
    ),
    vae=VAESpec(
        dim=4, z_dim=4, dim_mult=(1, 2, 2), num_res_blocks=1, temporal_downsample=(True, True), mean=(0.1, 0, 0, 0),
        std=(1.5, 1, 1, 1), layout="wan22", patch=2,
    ),
    text=TextSpec(vocab_size=35, dim=16, attention_dim=16, ffn_dim=32, num_heads=2, num_layers=2),
    chunk=2, window=6, sink=0, steps=(1000, 500), shift=3.0, context_noise=0.0, train_horizon=6, fps=8, size=(16, 32),
    grammar=BUNDLED_GRAMMAR.splitlines()[0],
)  # fmt: skip

RED = "a red ball bounces around on a navy background"
BLUE = "a blue square moves up and down on a black background"


def random_parts(card: Card = CARD) -> Parts:
    """Networks of a card; leaves the global random numbers as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = TextEncoder(build_umt5(card.text), load_tokenizer(BUNDLED_TOKENIZER), card.dit.text_length, card.grammar)
        return Parts(card, CausalDiT(card.dit).eval(), WanVAE(card.vae).eval(), text.eval())
