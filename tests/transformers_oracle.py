"""transformers in float32 as the oracle: every checkpoint form, and its activation codes replaced by ours."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# transformers compiles its BitNet quantisation functions; read by torch when it is imported.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

import numpy as np
import torch
import transformers
from transformers.integrations import bitnet as hf_bitnet

from tests.checkpoints import LINEARS, absmean_trits, read_tensors, widened
from tests.numpy_forward import SITES

_SITE_OF = {name: SITES[role] for role, name in LINEARS.items()}
_RENAMED = {"inner_attn_ln": "attn_sub_norm", "ffn_layernorm": "ffn_sub_norm"}


def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _load_published(path: Path, attention: str) -> Any:
    """A checkpoint with quantization_config, by transformers' own BitNet quantizer.

    It leaves linears in the checkpoint's type whatever dtype says; widening them is exact.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation=attention
    )
    for module in model.modules():
        if isinstance(module, hf_bitnet.BitLinear):
            module.dtype = torch.float32
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    return model


def _load_plain(path: Path, config: dict[str, Any], attention: str) -> Any:
    """A checkpoint without quantization_config, its matrices in AutoBitLinear modules.

    A BitNet architecture is online (absmean of the stored masters), with the sub-norms of BitnetForCausalLM
    renamed; a llama's matrices are dequantised ones, run as stored with weight_scale 1.
    """
    bitnet = config["architectures"][0] != "LlamaForCausalLM"
    values = {**config, "model_type": "bitnet" if bitnet else "llama", "dtype": "float32"}
    hf_config = transformers.AutoConfig.for_model(**values)
    model = transformers.AutoModelForCausalLM.from_config(
        hf_config, attn_implementation=attention, dtype=torch.float32
    )
    mode = "online" if bitnet else "offline"
    quantization = transformers.BitNetQuantConfig(linear_class="autobitlinear", quantization_mode=mode)
    hf_bitnet.replace_with_bitnet_linear(model, ["lm_head"], quantization)
    state = {}
    for name, tensor in read_tensors(path).items():
        for old, new in _RENAMED.items():
            name = name.replace(old, new)
        state[name] = torch.from_numpy(widened(tensor).copy())
        if not bitnet and any(name.endswith(f"{linear}.weight") for linear in LINEARS.values()):
            state[f"{name}_scale"] = torch.ones(1)
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    allowed = ["lm_head.weight"] if config["tie_word_embeddings"] else []
    if unexpected or missing != allowed:
        raise AssertionError(f"{path}: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model.eval()


def _freeze_online(module: Any) -> int:
    """Apply transformers' weight quantisation once; returns how many trits a wider sum changes.

    transformers averages in float32, in an order that depends on the thread count, so that a master on the
    rounding threshold may fall either way. Those entries, and no others, take the trit of the exact mean.
    """
    master = module.weight.detach()
    mean = master.abs().mean().clamp_(min=1e-5)
    scale = 1.0 / mean
    weight = hf_bitnet.WeightQuant.apply(master)
    theirs = (master * scale).round().clamp(-1, 1)
    if not torch.equal(theirs / scale, weight):
        raise AssertionError("transformers' WeightQuant is not the absmean formula")
    exact = torch.from_numpy(absmean_trits(master.numpy())[0].astype(np.float32))
    changed = exact != theirs
    if not bool(((master[changed] * scale).abs() - 0.5).abs().lt(1e-6).all()):
        raise AssertionError("a trit differs that is not a tie")
    module.weight.data = torch.where(changed, exact / scale, weight)
    module.weight_scale = torch.ones(1)
    module.online_quant = False
    return int(changed.sum())


@contextmanager
def _unpacked_once() -> Iterator[None]:
    """Let BitLinear modules, which unpack their weights at every call, keep what transformers unpacked."""
    unpack, kept = hf_bitnet.unpack_weights, {}

    def unpack_once(packed: Any, dtype: Any) -> Any:
        if packed.data_ptr() not in kept:
            kept[packed.data_ptr()] = unpack(packed, dtype)
        return kept[packed.data_ptr()]

    hf_bitnet.unpack_weights = unpack_once
    try:
        yield
    finally:
        hf_bitnet.unpack_weights = unpack


class Reference:
    """A checkpoint in transformers, float32, on the CPU.

    changed_trits: masters so near the ternary threshold that float32 summation order decides them.
    """

    def __init__(self, path: Path, *, attention: str = "eager") -> None:
        _quiet()
        torch.set_grad_enabled(False)
        config = json.loads((path / "config.json").read_text())
        published = "quantization_config" in config
        model = _load_published(path, attention) if published else _load_plain(path, config, attention)
        self.model = model
        self.changed_trits = 0
        self.linears: dict[str, Any] = {}
        for name, module in model.named_modules():
            if isinstance(module, hf_bitnet.AutoBitLinear) and module.online_quant:
                self.changed_trits += _freeze_online(module)
            if isinstance(module, (hf_bitnet.AutoBitLinear, hf_bitnet.BitLinear)):
                _, _, layer, linear = name.split(".", 3)
                self.linears[f"blk.{layer}.{_SITE_OF[linear]}"] = module
        if len(self.linears) != 7 * config["num_hidden_layers"]:
            raise AssertionError(f"{path}: {len(self.linears)} ternary linears")

    def logits(self, ids: list[int]) -> np.ndarray:
        """float32 [tokens, vocab], one prefill."""
        return self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()

    def logits_in_single_steps(self, ids: list[int]) -> np.ndarray:
        """float32 [tokens, vocab], one token at a time with transformers' own key-value cache."""
        cache, rows = None, []
        with _unpacked_once():
            for token in ids:
                out = self.model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                rows.append(out.logits[0, 0].numpy())
        return np.stack(rows)

    def pinned_logits(
        self, ids: list[int], codes: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Logits with activation rounding replaced by `codes`, and the unrounded values, by site.

        The activation scales stay transformers' own, so that a wrong scale shows in the logits.
        """
        with self._pinned(codes) as unrounded:
            return self.logits(ids), unrounded

    @contextmanager
    def _pinned(self, codes: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        unrounded: dict[str, np.ndarray] = {}
        current: list[str] = []

        def quantise(x: Any) -> tuple[Any, Any]:
            scale = 127 / x.abs().max(dim=-1, keepdim=True).values.clamp(min=1e-5)
            unrounded[current[-1]] = (x * scale)[0].numpy()
            return torch.from_numpy(codes[current[-1]])[None], scale

        class GivenCodes:
            @staticmethod
            def apply(x: Any) -> Any:
                given, scale = quantise(x)
                return given.float() / scale

        hooks = [
            module.register_forward_pre_hook(lambda module, args, site=site: current.append(site))
            for site, module in self.linears.items()
        ]
        act_quant, method = hf_bitnet.ActQuant, hf_bitnet.BitLinear.activation_quant
        hf_bitnet.ActQuant = GivenCodes
        hf_bitnet.BitLinear.activation_quant = lambda self, x: quantise(x)
        try:
            yield unrounded
        finally:
            hf_bitnet.ActQuant, hf_bitnet.BitLinear.activation_quant = act_quant, method
            for hook in hooks:
                hook.remove()
