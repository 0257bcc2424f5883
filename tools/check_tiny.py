"""Prove what models/README.md says about the bundled checkpoint, with transformers as the reference.

    python tools/check_tiny.py models/tiny                            # perplexity, greedy sample, copying
    python tools/check_tiny.py models/tiny --work build/train_tiny    # and equality with the trained model
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import torch
from export_tiny import rounded
from stdlib_corpus import build_corpus
from tiny_bitnet import Shape, TinyBitNet, perplexity
from transformers import AutoModelForCausalLM, AutoTokenizer

COPY_LENGTH = 60


def difference(reference: Any, work: Path, ids: torch.Tensor) -> tuple[float, float]:
    """Largest and median difference from the trained model's logits, in their standard deviations.

    Both round activations to int8, so where one rounds the other way a difference cascades: only the median
    is small by construction.
    """
    model = TinyBitNet(Shape())
    model.load_state_dict(torch.load(work / "state.pt", weights_only=True)["model"])
    with torch.no_grad():
        ours, theirs = rounded(model)(ids[None])[0], reference(ids[None]).logits[0]
    error = (ours - theirs).abs() / theirs.std()
    return error.max().item(), error.median().item()


class Adapter(torch.nn.Module):
    """A transformers model behind the interface that `perplexity` wants."""

    def __init__(self, reference: Any) -> None:
        super().__init__()
        self.reference, self.shape = reference, Shape()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.reference(ids).logits


def unigram(ids: torch.Tensor, vocab: int) -> float:
    """Perplexity of the tokens under their own frequencies: no unigram model does better."""
    counts = torch.bincount(ids, minlength=vocab).double()
    return math.exp(-(counts / counts.sum()).log()[ids].mean().item())


def copied_lines(sample: str) -> list[str]:
    """Lines longer than 60 characters that the sample shares with the training text, either way round."""
    training = build_corpus().training_lines()
    copied = [line for line in training if len(line) > COPY_LENGTH and line in sample]
    text = "\n".join(training)
    lines = [line.strip() for line in sample.splitlines()]
    return copied + [line for line in lines if len(line) > COPY_LENGTH and line in text]


def main() -> None:
    """Load the checkpoint and print every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--work", type=Path, help="the directory with the training's state.pt")
    parser.add_argument("--prompt", action="append", help="prompt of a greedy sample; may be repeated")
    parser.add_argument("--chunks", type=int, help="only so many chunks of the held-out text")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
    # transformers 5.23 keeps the stored bfloat16 of a BitNet checkpoint whatever dtype it is asked for.
    reference = AutoModelForCausalLM.from_pretrained(args.checkpoint, dtype=torch.float32)
    reference = reference.to(torch.float32).eval()
    held_out = torch.tensor(tokenizer.encode((args.checkpoint / "heldout.txt").read_text()))
    if args.work:
        largest, median = difference(reference, args.work, held_out[:512])
        print(f"difference from the trained model: largest {largest:.1e}, median {median:.1e} deviations")
    for prompt in args.prompt or ["The following example"]:
        ids = torch.tensor([tokenizer.encode(prompt)])
        out = reference.generate(ids, max_new_tokens=64, min_new_tokens=64, do_sample=False)[0]
        sample = tokenizer.decode(out, skip_special_tokens=True)
        print(f"--- 64 greedy tokens after {prompt!r}; copied lines: {copied_lines(sample)}\n{sample}\n---")
    size = sum(path.stat().st_size for path in args.checkpoint.iterdir())
    scored = (len(held_out) // 512) * 255
    bound = unigram(held_out, reference.config.vocab_size)
    ppl = perplexity(Adapter(reference), held_out, tokenizer.bos_token_id, args.chunks)
    print(f"{size} bytes; {len(held_out)} held-out tokens, {scored} scored")
    print(f"perplexity {ppl:.4f}; unigram {bound:.2f}, a third of it {bound / 3:.2f}")


if __name__ == "__main__":
    main()
