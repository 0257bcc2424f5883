"""Train the bundled checkpoint: a BitNet b1.58 model of five million parameters, on one CPU core.

    python tools/train_tiny.py --out models/tiny --minutes 75        # again after an interruption: resumes
    python tools/check_tiny.py models/tiny --work build/train_tiny   # compares it with transformers

Quantisation-aware training as in BitNet b1.58: every linear layer multiplies absmean-ternary weights by
absmax-int8 activations, gradients pass straight through both roundings, and the schedule has two stages
(a higher learning rate with weight decay, then a lower one without). Needs torch and tokenizers.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from export_tiny import export, rounded
from stdlib_corpus import Corpus, build_corpus
from tiny_bitnet import Shape, TinyBitNet, perplexity
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
# The split of Llama 3 ("llama-bpe" in GGUF).
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Recipe:
    """How it is trained; `steps` is what fits into `--minutes`, and the clock wins when it does not."""

    seed: int = 1
    steps: int = 4000
    batch: int = 4
    peak_rate: float = 3e-3
    second_stage: float = 1 / 3
    warmup: int = 100
    weight_decay: float = 0.1
    dropout: float = 0.1
    clip: float = 1.0
    evaluate_every: int = 100


# ---------------------------------------------------------------------------- tokenizer


def train_tokenizer(corpus: Corpus, vocab: int) -> Tokenizer:
    """Byte-level BPE with the split and the conventions of Llama 3, on the training text only."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.training.values(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text, without BOS."""
    return tokenizer.encode(text, add_special_tokens=False).ids


# ---------------------------------------------------------------------------- training


def windows(ids: Tensor, context: int, batch: int, bos: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random windows of the training tokens, each with BOS in place of its first token, and their targets."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(ids) - context - 1, (batch, 1), generator=generator)
    window = ids[starts + torch.arange(context + 1)]
    inputs = window[:, :-1].clone()
    inputs[:, 0] = bos
    return inputs, window[:, 1:]


def schedule(recipe: Recipe, step: int, done: float) -> tuple[float, float]:
    """Learning rate and weight decay at `step`, with the share `done` (0 to 1) of the training behind it."""
    if step < recipe.warmup:
        return recipe.peak_rate * (step + 1) / recipe.warmup, recipe.weight_decay
    if done < 0.5:
        return recipe.peak_rate * (1 - done), recipe.weight_decay
    return recipe.peak_rate * recipe.second_stage * 2 * (1 - done), 0.0


class Run:
    """Everything that an interrupted training needs to go on exactly where it stopped."""

    def __init__(self, shape: Shape, recipe: Recipe, work: Path) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.file = recipe, work / "state.pt"
        self.model = TinyBitNet(shape, recipe.dropout)
        matrices = [p for p in self.model.parameters() if p.dim() == 2]
        vectors = [p for p in self.model.parameters() if p.dim() == 1]
        self.optimiser = torch.optim.AdamW(
            [{"params": matrices}, {"params": vectors}], betas=(0.9, 0.95), fused=True
        )
        self.step, self.seconds, self.curve = 0, 0.0, []
        if self.file.exists():
            state = torch.load(self.file, weights_only=True)
            if state["recipe"] != asdict(recipe) or state["shape"] != asdict(shape):
                sys.exit(f"{self.file} belongs to another recipe; remove it or choose another --work")
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            torch.set_rng_state(state["rng"])
            self.step, self.seconds, self.curve = state["step"], state["seconds"], state["curve"]

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        state |= {"rng": torch.get_rng_state(), "step": self.step, "seconds": self.seconds}
        state |= {"curve": self.curve, "recipe": asdict(self.recipe), "shape": asdict(self.model.shape)}
        torch.save(state, self.file.with_suffix(".new"))
        self.file.with_suffix(".new").replace(self.file)

    def train(self, ids: Tensor, held_out: Tensor, bos: int, minutes: float) -> None:
        """Train to the end of the schedule, saving and reporting at every evaluation."""
        recipe, model = self.recipe, self.model
        began, loss_sum, loss_steps = time.monotonic() - self.seconds, 0.0, 0
        while (done := max(self.step / recipe.steps, (time.monotonic() - began) / (60 * minutes))) < 1:
            rate, decay = schedule(recipe, self.step, done)
            for group, group_decay in zip(self.optimiser.param_groups, (decay, 0.0), strict=True):
                group["lr"], group["weight_decay"] = rate, group_decay
            shorter = 2 if done < 0.5 else 1  # half the context at first: the same tokens in less time
            context, batch = model.shape.context // shorter, recipe.batch * shorter
            inputs, targets = windows(ids, context, batch, bos, seed=recipe.seed * 1_000_000 + self.step)
            loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
            self.optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            self.optimiser.step()
            self.step, loss_sum, loss_steps = self.step + 1, loss_sum + loss.item(), loss_steps + 1
            if self.step % recipe.evaluate_every == 0:
                ppl = perplexity(model, held_out, bos, chunks=24)
                self.seconds = time.monotonic() - began
                training = loss_sum / loss_steps
                self.curve.append((self.step, round(self.seconds), rate, training, ppl))
                print(f"step {self.step}  {self.seconds:.0f} s  rate {rate:.2e}  training loss {training:.3f}"
                      f"  held-out ppl {ppl:.2f}", flush=True)  # fmt: skip
                loss_sum, loss_steps = 0.0, 0
                self.save()
        self.seconds = time.monotonic() - began
        self.save()


def unigram_perplexity(counts: Tensor, ids: Tensor) -> float:
    """Perplexity of `ids` under a unigram model with the given token counts."""
    return math.exp(-(counts.double() / counts.sum()).log()[ids].mean().item())


def main() -> None:
    """Parse the command line, train and export."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, default=Path("models/tiny"), help="where the checkpoint goes")
    parser.add_argument("--work", type=Path, default=Path("build/train_tiny"), help="resumable state")
    parser.add_argument("--minutes", type=float, default=75.0, help="the schedule is over after this")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="or after this, if it is earlier")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    shape, recipe = Shape(), Recipe(steps=args.steps)
    corpus = build_corpus()
    tokenizer = train_tokenizer(corpus, shape.vocab)
    bos, eos = (tokenizer.token_to_id(name) for name in (BOS, EOS))
    ids = torch.tensor([i for text in corpus.training.values() for i in (*encode(tokenizer, text), eos)])
    # The text as a whole, BOS first: the same tokens that `bitconv perplexity` sees.
    held_out = torch.tensor([bos, *encode(tokenizer, corpus.held_out)])
    counts, own = (torch.bincount(x, minlength=shape.vocab) for x in (ids, held_out))
    facts = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "training_tokens": len(ids),
        "held_out_tokens": len(held_out),
        "held_out_modules": list(corpus.held_out_modules),
        "unigram_perplexity_of_training_counts": unigram_perplexity(counts + 1, held_out),
        "unigram_perplexity_of_held_out_counts": unigram_perplexity(own, held_out),
        "parameters": sum(p.numel() for p in TinyBitNet(shape).parameters()),
    }
    print(json.dumps(facts), flush=True)
    run = Run(shape, recipe, args.work)
    run.train(ids, held_out, bos, args.minutes)
    export(run.model, tokenizer, corpus.held_out, args.out)
    facts |= {"steps": run.step, "seconds": round(run.seconds), "recipe": asdict(recipe), "curve": run.curve}
    facts["held_out_perplexity"] = perplexity(rounded(run.model), held_out, bos)
    (args.work / "report.json").write_text(json.dumps(facts, indent=1))
    print(json.dumps({key: facts[key] for key in ("steps", "seconds", "held_out_perplexity")}))


if __name__ == "__main__":
    main()
