"""From config.json to hyperparameters and the form of the weights, strict about what changes the result."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from bitconv.errors import FormatError, UnsupportedError
from bitconv.formats.config import Config
from bitconv.models.family import LINEARS, Hyperparameters, ModelFamily

_LARGEST = 1 << 26


class WeightForm(enum.Enum):
    """How a checkpoint stores its ternary matrices; decided by config.json alone.

    PACKED_DIVIDE, PACKED_MULTIPLY: trits, whose multiplier is 1 / weight_scale or weight_scale.
    ONLINE: masters that the reference ternarises by absmean each time it runs.
    EXACT: matrices whose values are -a, 0 and +a.
    """

    PACKED_DIVIDE = "packed, divided by weight_scale"
    PACKED_MULTIPLY = "packed, multiplied by weight_scale"
    ONLINE = "masters, ternarised by absmean"
    EXACT = "stored as {-a, 0, +a}"


@dataclass(frozen=True)
class CheckpointSettings:
    """What config.json says: family, hyperparameters, form of the weights, sentences for the user."""

    family: ModelFamily
    hyperparameters: Hyperparameters
    form: WeightForm
    notes: tuple[str, ...]


def read_hf(config: Config, tensor_names: Collection[str]) -> CheckpointSettings:
    """Read config.json; tensor_names decide on a tied head where it does not say.

    FormatError: a key is missing, contradictory or of the wrong type. UnsupportedError: a setting that this
    package does not compute.
    """
    family = _family(config)
    _refuse_unsupported(config)
    activation = config.expect("hidden_act", family.activations)
    tied = config.read(bool, "tie_word_embeddings", "lm_head.weight" not in tensor_names)
    notes = []
    arch = family.gguf_arch(activation, tied)
    if activation == "silu" and not tied and family.sub_norms:
        notes.append(
            f"an untied head with SiLU and sub-norms is written as {arch} with hidden_activation = silu; "
            "other runtimes ignore the head and apply ReLU squared"
        )
    hidden, n_heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    n_kv_heads = _size(config, "num_key_value_heads", n_heads)
    if n_heads % n_kv_heads:
        raise FormatError(f"{config.where}: {n_heads} heads cannot share {n_kv_heads} key-value heads")
    head_dim = _head_dim(config, hidden, n_heads)
    theta, factors = _rope(config, family, head_dim)
    hp = Hyperparameters(
        arch=arch,
        n_layers=_size(config, "num_hidden_layers", largest=10_000),
        hidden=hidden,
        ffn=_size(config, "intermediate_size"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        vocab=_size(config, "vocab_size"),
        context=_size(config, "max_position_embeddings", largest=1 << 30),
        rms_eps=_positive(config, "rms_norm_eps", 1.0),
        rope_theta=theta,
        rope_style=family.rope_style,
        activation=activation,
        sub_norms=family.sub_norms,
        tied_head=tied,
        rope_factors=factors,
    )
    return CheckpointSettings(family, hp, _weight_form(config, family), tuple(notes))


def _family(config: Config) -> ModelFamily:
    from bitconv.models import family_of_hf

    architectures = config.read(list, "architectures")
    if len(architectures) != 1 or not isinstance(architectures[0], str):
        raise FormatError(f"{config.where}: architectures must hold one name, found {architectures!r}")
    try:
        return family_of_hf(architectures[0])
    except UnsupportedError as error:
        raise UnsupportedError(f"{config.where}: {error}") from None


def _refuse_unsupported(config: Config) -> None:
    for bias in ("attention_bias", "mlp_bias"):
        config.expect(bias, (False,), False)
    config.expect("partial_rotary_factor", (1, 1.0), 1.0)
    config.expect("use_rms_norm", (False,), False)
    config.expect("weight_bits", (1,), 1)
    config.expect("input_bits", (8,), 8)
    window = config.read(int, "sliding_window", None)
    if config.read(bool, "use_sliding_window", True) and window is not None:
        raise UnsupportedError(f"{config.where}: sliding_window is {window}; supported: full attention")
    for kind in config.read(list, "layer_types", ()):
        if kind != "full_attention":
            raise UnsupportedError(f"{config.where}: layer_types has {kind!r}; supported: 'full_attention'")


def _size(config: Config, key: str, default: int | None = None, *, largest: int = _LARGEST) -> int:
    value = config.read(int, key) if default is None else config.read(int, key, default)
    if not 1 <= value <= largest:
        raise FormatError(f"{config.where}: {key} is {value}; expected 1 to {largest}")
    return value


def _positive(config: Config, key: str, largest: float) -> float:
    value = config.read(float, key)
    if not 0 < value <= largest:
        raise FormatError(f"{config.where}: {key} is {value}; expected above 0 and at most {largest:g}")
    return value


def _head_dim(config: Config, hidden: int, n_heads: int) -> int:
    if "head_dim" not in config and hidden % n_heads:
        raise FormatError(f"{config.where}: {n_heads} heads do not divide {hidden} and head_dim is missing")
    head_dim = _size(config, "head_dim", max(hidden // n_heads, 1), largest=1 << 16)
    if head_dim % 2:
        raise FormatError(f"{config.where}: head dimension {head_dim} is odd; rotation needs pairs")
    return head_dim


def _rope(config: Config, family: ModelFamily, head_dim: int) -> tuple[float, np.ndarray | None]:
    """Return theta and the factors that divide the inverse frequencies, from either spelling."""
    old, new = config.section("rope_scaling"), config.section("rope_parameters")
    thetas = [
        _positive(where, "rope_theta", 1e15)
        for where in (config, old, new)
        if where is not None and "rope_theta" in where
    ]
    if len(set(thetas)) > 1:
        raise FormatError(f"{config.where}: rope_theta is given as {thetas[0]:g} and as {thetas[1]:g}")
    if not thetas and family.default_rope_theta is None:
        raise FormatError(f"{config.where}: rope_theta is missing, also from rope_parameters")
    theta = thetas[0] if thetas else float(family.default_rope_theta or 0)
    context = _size(config, "max_position_embeddings", largest=1 << 30)
    found = [_rope_factors(where, theta, head_dim, context) for where in (old, new) if where is not None]
    if len(found) == 2 and not np.array_equal(_as_array(found[0]), _as_array(found[1])):
        raise FormatError(f"{config.where}: rope_scaling and rope_parameters contradict each other")
    return theta, found[0] if found else None


def _as_array(factors: np.ndarray | None) -> np.ndarray:
    return np.zeros(0) if factors is None else factors


def _rope_factors(rope: Config, theta: float, head_dim: int, context: int) -> np.ndarray | None:
    rope.expect("partial_rotary_factor", (1, 1.0), 1.0)
    kinds = ("default", "llama3")
    kind = rope.expect("rope_type", kinds, None) or rope.expect("type", kinds, "default")
    rope.expect("type", kinds, None)
    if kind == "default":
        return None
    factor = _positive(rope, "factor", 1e6)
    low, high = _positive(rope, "low_freq_factor", 1e6), _positive(rope, "high_freq_factor", 1e6)
    if low >= high:
        raise FormatError(f"{rope.where}: low_freq_factor {low:g} must be below high_freq_factor {high:g}")
    trained = _size(rope, "original_max_position_embeddings", context, largest=1 << 30)
    return llama3_factors(theta, head_dim, factor, low, high, trained)


def llama3_factors(
    theta: float, head_dim: int, factor: float, low: float, high: float, trained: int
) -> np.ndarray:  # fmt: skip
    """Return what Llama 3.1's scaling divides each inverse frequency by: float32 [head_dim / 2].

    Wavelengths below trained / high stay, those above trained / low are divided by `factor`, and the ones
    between are interpolated in the frequency. trained: context length before the scaling.
    """
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    smooth = np.clip((trained / wavelengths - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _weight_form(config: Config, family: ModelFamily) -> WeightForm:
    quantization = config.section("quantization_config")
    if quantization is None:
        return WeightForm.ONLINE if family.plain_form == "online" else WeightForm.EXACT
    quantization.expect("quant_method", ("bitnet",))
    quantization.expect("use_rms_norm", (False,), False)
    linear = quantization.expect("linear_class", ("bitlinear", "autobitlinear"), "bitlinear")
    modes = ("offline", "online") if linear == "autobitlinear" else ("offline",)
    mode = quantization.expect("quantization_mode", modes, "offline")
    skipped = quantization.read(list, "modules_to_not_convert", None)
    if skipped is not None:
        _check_skipped(quantization, family, skipped, online=mode == "online")
    if mode == "online":
        return WeightForm.ONLINE
    return WeightForm.PACKED_MULTIPLY if linear == "autobitlinear" else WeightForm.PACKED_DIVIDE


def _check_skipped(quantization: Config, family: ModelFamily, skipped: list[object], *, online: bool) -> None:
    """Refuse a list that keeps a block's linear dense or, for masters, makes the head ternary."""
    where = f"{quantization.where}: modules_to_not_convert"
    linears = [
        name.removesuffix(".weight").replace("{n}", "0")
        for linear in LINEARS
        for name in family.hf_names[f"blk.{{n}}.{linear}.weight"]
    ]
    for entry in skipped:
        if not isinstance(entry, str):
            raise FormatError(f"{where} holds {entry!r}, which is not a name")
        if not re.fullmatch(r"[\w.]*", entry):
            raise UnsupportedError(f"{where} has the pattern {entry!r}; supported: plain names")
        layer_0 = re.sub(r"[0-9]+", "0", entry)
        hit = next((linear for linear in linears if _skips(layer_0, linear)), None)
        if hit:
            kind = hit.rpartition(".")[2]
            raise UnsupportedError(f"{where} has {entry!r}, which keeps {kind} dense; supported: all ternary")
    if online and not any(_skips(str(entry), "lm_head") for entry in skipped):
        raise UnsupportedError(
            f"{where} leaves out lm_head, which makes the head ternary; supported: null or with lm_head"
        )


def _skips(entry: str, module: str) -> bool:
    """Say whether transformers would leave this module alone: a path from the start, or any suffix."""
    return module.endswith(entry) or module.startswith(entry.rstrip(".") + ".")
