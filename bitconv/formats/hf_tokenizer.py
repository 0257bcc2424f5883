"""A checkpoint's tokenizer files become the vocabulary of a GGUF file.

tokenizer.json is taken where it exists, since it is what transformers runs; else tokenizer.model, which is
SentencePiece or tiktoken by its content. Special ids and the chat template come from the files beside it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Final

from bitconv.errors import BitconvWarning, FormatError, InputError, UnsupportedError
from bitconv.formats import special_tokens
from bitconv.formats.checkpoint import Checkpoint
from bitconv.formats.huggingface_json import check_same_tokens, load, read_tokenizer_json
from bitconv.formats.pretokenizers import pre_tokenizer, pre_tokenizer_names
from bitconv.formats.spm_model import read_spm_model
from bitconv.formats.tiktoken_ranks import looks_like_ranks, read_tiktoken_ranks
from bitconv.formats.token_table import TokenTable
from bitconv.formats.vocabulary import BPE, SPM, Vocabulary

JSON_KEPT: Final = 64_000_000
"""Bytes; a larger tokenizer.json is converted but not copied into the GGUF file."""
_JSON_READ: Final = 256 << 20


def read_hf_tokenizer(
    checkpoint: Checkpoint, vocab_size: int, *, pre: str | None = None, keep_json: bool = True
) -> Vocabulary:
    """Read the tokenizer of a checkpoint and pad it to `vocab_size` tokens, the rows of the embedding.

    pre: the pre-tokenizer's name, where the file's is not recognised or not wanted. keep_json: copy the text
    of tokenizer.json. Raises InputError when there is no tokenizer, FormatError when a file is malformed or
    has more tokens than the model, UnsupportedError for a kind of tokenizer, or (without tokenizer.json in
    the result) for splits, that GGUF cannot express.
    """
    table = _read_table(checkpoint)
    settings = checkpoint.read_json(special_tokens.SETTINGS) or {}
    if table.json_text is None:
        special_tokens.add_extra_tokens(table, checkpoint, settings)
    tokens, types, scores = table.padded(vocab_size)
    text = _kept_json(table, keep_json)
    if text is not None:
        check_same_tokens(load(text, table.where), tokens, types.tolist())
    ids = special_tokens.settle(table, checkpoint, settings, vocab_size)
    name = _settle_pre(table, pre, text is not None)
    return Vocabulary(
        model=table.model,
        tokens=tokens,
        pre=name,
        scores=scores if table.model == SPM else None,
        types=types,
        merges=table.merges if table.model == BPE else (),
        bos_id=ids.bos,
        eos_id=ids.eos,
        eot_id=ids.eot,
        eom_id=ids.eom,
        unk_id=ids.unk,
        pad_id=ids.pad,
        eog_ids=ids.eog,
        add_bos=ids.add_bos,
        add_eos=ids.add_eos,
        add_space_prefix=table.add_space_prefix,
        chat_template=_chat_template(checkpoint, settings),
        huggingface_json=text,
        json_is_expressed=text is not None and _is_expressed(table, name),
    )


def _read_table(checkpoint: Checkpoint) -> TokenTable:
    data = checkpoint.read_bytes("tokenizer.json", limit=_JSON_READ)
    if data is not None:
        where = str(checkpoint.path / "tokenizer.json")
        return read_tokenizer_json(_utf8(data, where), where)
    data = checkpoint.read_bytes("tokenizer.model")
    if data is None:
        raise InputError(
            f"{checkpoint.path}: neither tokenizer.json nor tokenizer.model is there; copy it from the model's "
            "repository, or let transformers write it: "
            "AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)"
        )
    where = str(checkpoint.path / "tokenizer.model")
    return read_tiktoken_ranks(data, where) if looks_like_ranks(data) else read_spm_model(data, where)


def _kept_json(table: TokenTable, keep: bool) -> str | None:
    if table.json_text is None or not keep:
        return None
    if len(table.json_text.encode("utf-8")) > JSON_KEPT:
        _warn(f"{table.where}: larger than {JSON_KEPT} bytes, so it is left out of the GGUF file")
        return None
    return table.json_text


def _settle_pre(table: TokenTable, wanted: str | None, has_json: bool) -> str:
    """Choose the pre-tokenizer's name, and say where a tokenizer rebuilt from it would not be the model's."""
    unlike, remarks = list(table.unlike), list(table.remarks)
    name = table.pre
    if wanted is not None and table.model == SPM:
        raise InputError(f"{table.where}: a SentencePiece tokenizer has no pre-tokenizer to choose; leave out --pre")
    if wanted is not None:
        name = pre_tokenizer(wanted, "--pre").name
    elif name is None:
        known = ", ".join(pre_tokenizer_names())
        unlike.append(f"its pre-tokenizer is none of those that GGUF names ({known}); --pre sets one")
        name = "default"
    if unlike and not has_json:
        raise UnsupportedError(
            f"{table.where}: a GGUF file that does not hold tokenizer.json cannot express this tokenizer: "
            + "; ".join(unlike)
        )
    if pre_tokenizer(name, table.where).disputed:
        unlike.append(f"they disagree about the pre-tokenizer {name}")
    if not has_json:
        unlike += remarks
    if unlike:
        _warn(
            f"{table.where}: runtimes that do not read tokenizer.json from the GGUF file may split text "
            f"differently: {'; '.join(unlike)}"
        )
    return name


def _is_expressed(table: TokenTable, pre: str) -> bool:
    """Whether tokens, merges and the name of the pre-tokenizer say all that tokenizer.json says about cutting text."""
    known = pre == table.pre and not pre_tokenizer(pre, table.where).disputed
    return table.model == BPE and known and not (table.unlike or table.remarks or table.odd)


def _chat_template(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> str | None:
    """Find the template where transformers looks for it: its own file first, then tokenizer_config.json.

    A list of named templates is represented by the one called "default".
    """
    data = checkpoint.read_bytes("chat_template.jinja")
    if data is not None:
        return _utf8(data, str(checkpoint.path / "chat_template.jinja"))
    sources = ((special_tokens.SETTINGS, settings), ("chat_template.json", None))
    for filename, values in sources:
        found = (checkpoint.read_json(filename) or {} if values is None else values).get("chat_template")
        if isinstance(found, list):
            named = {e.get("name"): e.get("template") for e in found if isinstance(e, dict)}
            found = named.get("default")
        if isinstance(found, dict):
            found = found.get("default")
        if isinstance(found, str):
            return found
        if found is not None:
            raise FormatError(f"{checkpoint.path / filename}: chat_template must be text, found {str(found)[:80]}")
    return None


def _utf8(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: not UTF-8 at byte {error.start}") from error


def _warn(message: str) -> None:
    warnings.warn(message, BitconvWarning, stacklevel=3)
