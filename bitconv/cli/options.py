"""Options that several commands share, spelt as llama.cpp, bitnet.cpp and mlx-lm users type them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click

from bitconv.cli.state import F, State
from bitconv.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from bitconv.runtime.model import Model


CACHE_TYPES = ("f16", "f32", "q8_0")  # those of bitconv._kernels, which is slow to import


def stack(*options: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator out of many, shown by --help in the given order."""

    def apply(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")

tq_scale_option = click.option(
    "--tq-scale",
    type=click.Choice(["exact", "f16"]),
    default="exact",
    show_default=True,
    help="Multipliers of tq1_0 and tq2_0; f16 rounds them and is the form for llama.cpp.",
)

layout_options = stack(
    click.option(
        "--kernel-config",
        metavar="SPEC",
        help="Tiles of TL1 and TL2 that the file does not state: tl1:M,K,BM,BK,bm;... or tl2:M,K,BM,BK;...",
    ),
    click.option(
        "--i2s-layout",
        type=click.Choice(["x86-128", "arm64", "x4"]),
        help="Layout of I2_S in a file that does not state it; default: x86-128.",
    ),
)

placement_options = stack(
    click.option("--no-mmap", is_flag=True, help="Read the weights into memory instead of mapping the file."),
    click.option("--mlock", is_flag=True, help="Keep the weights from being swapped or dropped from memory."),
)

model_options = stack(
    click.option(
        "-t",
        "--threads",
        type=click.IntRange(min=1),
        help="Threads; default: OMP_NUM_THREADS, else one for each core this process may use.",
    ),
    click.option(
        "--isa",
        metavar="NAME",
        help="Instruction set of the kernels, as doctor lists them; default: the best.",
    ),
    click.option(
        "--hidden-act",
        metavar="NAME",
        help="Activation of the feed-forward network, silu or relu2, where the file is wrong about it.",
    ),
    click.option(
        "-ctk",
        "--cache-type-k",
        type=click.Choice(CACHE_TYPES),
        help="Type of the KV cache, keys and values alike; default: f16. q8_0 takes half the memory.",
    ),
    click.option("-ctv", "--cache-type-v", type=click.Choice(CACHE_TYPES), help="The same as -ctk."),
    layout_options,
    placement_options,
)

sampling_options = stack(
    click.option(
        "--temp", "--temperature", "-temp", type=float, default=0.8, help="Temperature; 0 is greedy."
    ),
    click.option("--top-k", type=int, default=40, help="Keep the k best tokens; 0 is off."),
    click.option("--top-p", type=float, default=0.95, help="Keep the best tokens of this mass; 1 is off."),
    click.option(
        "--min-p", type=float, default=0.05, help="Drop tokens below this share of the best; 0 is off."
    ),
    click.option("--repeat-penalty", type=float, default=1.0, help="Penalty of recent tokens; 1 is off."),
    click.option("--repeat-last-n", type=int, default=64, help="Tokens the penalties look at; -1 is all."),
    click.option("--presence-penalty", type=float, default=0.0, help="Subtracted once from recent tokens."),
    click.option("--frequency-penalty", type=float, default=0.0, help="Subtracted for each occurrence."),
    click.option(
        "-s", "--seed", type=int, default=-1, help="Seed of the sampler; -1 is random and is printed."
    ),
)

generation_options = stack(
    click.option(
        "-n",
        "--predict",
        "--n-predict",
        "--max-tokens",
        type=int,
        default=-1,
        help="Tokens to generate; -1: until the end of the text or of the context.",
    ),
    click.option(
        "-c", "--ctx-size", type=click.IntRange(min=0), default=0, help="Context in tokens; 0: the model's."
    ),
    click.option(
        "-r", "--stop", "--reverse-prompt", multiple=True, help="Stop at this text; may be repeated."
    ),
    click.option("--ignore-eos", is_flag=True, help="Never end by an end token."),
    click.option(
        "--lookup",
        is_flag=True,
        help="Guess tokens from earlier text and check several at once: the same output, faster where it repeats.",
    ),
    click.option("-b", "--batch-size", type=click.IntRange(min=1), help="Tokens per prompt pass, at most."),
    click.option(
        "-ub", "--ubatch-size", type=click.IntRange(min=1), help="The same as -b; the smaller counts."
    ),
    click.option(
        "-ngl", "--n-gpu-layers", "--gpu-layers", type=int, help="Accepted and ignored: no GPU in this build."
    ),
)


@dataclass(frozen=True)
class RunOptions:
    """The values of model_options, sampling_options and generation_options."""

    threads: int | None
    isa: str | None
    hidden_act: str | None
    cache_type_k: str | None
    cache_type_v: str | None
    kernel_config: str | None
    i2s_layout: str | None
    no_mmap: bool
    mlock: bool
    temp: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    repeat_last_n: int
    presence_penalty: float
    frequency_penalty: float
    seed: int
    predict: int
    ctx_size: int
    stop: tuple[str, ...]
    ignore_eos: bool
    lookup: bool
    batch_size: int | None
    ubatch_size: int | None
    n_gpu_layers: int | None

    @classmethod
    def take(cls, values: dict[str, Any]) -> RunOptions:
        """Move the fields of this class out of a command's keyword arguments."""
        return cls(**{field.name: values.pop(field.name) for field in fields(cls)})

    def load(self, path: str, state: State) -> Model:
        """Load the model as these options say."""
        if self.n_gpu_layers:
            state.note("note: no GPU in this build; -ngl is ignored")
        return load_model(
            path,
            threads=self.threads,
            isa=self.isa,
            hidden_act=self.hidden_act,
            cache_type_k=self.cache_type_k,
            cache_type_v=self.cache_type_v,
            kernel_config=self.kernel_config,
            i2s_layout=self.i2s_layout,
            no_mmap=self.no_mmap,
            mlock=self.mlock,
        )

    def generation(self) -> dict[str, Any]:
        """Keyword arguments for bitconv.runtime.generate.generate; the context is left to the caller."""
        batches = [size for size in (self.batch_size, self.ubatch_size) if size]
        return {
            "max_tokens": self.predict,
            "stop": self.stop,
            "ignore_eos": self.ignore_eos,
            "lookup": self.lookup,
            "temperature": self.temp,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repeat_penalty": self.repeat_penalty,
            "repeat_last_n": self.repeat_last_n,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": self.seed,
            **({"batch": min(batches)} if batches else {}),
        }


def load_model(
    path: str,
    *,
    cache_type_k: str | None,
    cache_type_v: str | None,
    no_mmap: bool,
    **options: Any,
) -> Model:
    """bitconv.load with the options of model_options."""
    kinds = {kind for kind in (cache_type_k, cache_type_v) if kind}
    if len(kinds) > 1:
        raise UnsupportedError(
            "keys and values of the KV cache have one type in this version\ngive -ctk and -ctv the same value"
        )
    import bitconv

    cache_type: Any = kinds.pop() if kinds else "f16"
    return bitconv.load(path, cache_type=cache_type, mmap=not no_mmap, **options)


def read_text(path: str) -> str:
    """The text of a file, or of stdin for "-"."""
    if path == "-":
        data = sys.stdin.buffer.read()
    else:
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}\ngive a readable text file") from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8\ngive the text in UTF-8") from error
