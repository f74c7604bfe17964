"""`arvid encode`: embeddings of prompts to a file, so that generating needs no text encoder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import configs

__all__ = ["add", "run"]

EXAMPLES = """\
examples:
  arvid encode "a fox runs" "the fox sleeps" --model Wan2.1-T2V-1.3B -o foxes.safetensors
  arvid generate "a fox runs" --model Wan2.1-T2V-1.3B --checkpoint self_forcing_dmd.pt --text foxes.safetensors
"""


def add(commands: Any) -> None:
    """Register the subcommand."""
    p = commands.add_parser(
        "encode", help="write embeddings of prompts", description="Encode prompts with a model's text encoder, in "
        "bfloat16 if it is a published one, and write the embeddings to FILE, for --text of arvid generate. Prompts "
        "are added to a FILE of the same encoder.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("prompts", metavar="PROMPT", nargs="*", help="what videos show")
    p.add_argument("--prompts", metavar="FILE.txt", dest="file", help="a file with one prompt a line, encoded as well")
    p.add_argument("-o", "--output", metavar="FILE", required=True, help="a .safetensors file")
    p.add_argument("--model", metavar="FOLDER", help="a folder with a text encoder (default: the bundled model)")
    p.add_argument("--card", metavar="NAME", help="the card of the model, where its config.json leaves it open")
    p.add_argument("--device", default="cpu", help="where to run: cpu, cuda, ... (default: %(default)s)")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Encode and write; paths are checked before the encoder is read."""
    output = Path(arguments.output)
    if output.suffix != ".safetensors" or not output.absolute().parent.is_dir():
        raise ValueError(f"-o {output}: give a .safetensors file in a folder that exists")
    prompts = [*arguments.prompts, *_lines(arguments.file)]
    if not prompts:
        raise ValueError("no prompt given; give at least one, or --prompts FILE.txt")
    if not all(prompt.strip() for prompt in prompts):
        raise ValueError("a prompt is empty; describe the video in words")
    import torch

    from arvid.models.embeddings import Embeddings, encoder_hash
    from arvid.models.loading import read_text
    from arvid.pipeline import usable

    device, found = usable(arguments.device), configs.found(arguments)
    folder = found.folder
    missing = [str(path) for path in (folder.text, folder.tokenizer) if not path.exists()]
    if missing:
        raise FileNotFoundError(f"{', '.join(missing)} missing: encoding needs a model's text encoder and tokenizer")
    older = Embeddings.read(output) if output.exists() else None
    digest = encoder_hash(folder.text, folder.tokenizer)
    if older:
        older.check(digest, found.card.dit.text_length, found.card.dit.text_dim)
    dtype = torch.float32 if folder.kind == "arvid" else torch.bfloat16
    text = read_text(folder.text, folder.tokenizer, found.card, device, dtype)
    made = Embeddings.of(text, prompts, digest)
    whole = older.merged(made) if older else made
    whole.write(output)
    print(f"{output}: {len(made.rows)} encoded, {len(whole.rows)} prompts in all, encoder {digest[:12]}")
    return 0


def _lines(file: str | None) -> list[str]:
    if file is None:
        return []
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts {file} is no UTF-8 text: {error}") from error
    return [line for line in lines if line.strip()]
