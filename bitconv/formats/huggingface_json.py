"""Reads tokenizer.json with the `tokenizers` library, and compares it with a list of tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from bitconv.errors import FormatError, UnsupportedError
from bitconv.formats.pretokenizers import FALCON_PUNCTUATION, GPT_2, named_for
from bitconv.formats.token_table import TokenTable
from bitconv.formats.vocabulary import BPE, SPM, TokenType

KEY: Final = "tokenizer.huggingface.json"
_SPACE = "\u2581"
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>\Z")


def load(text: str, where: str) -> Any:
    """Build the library's tokenizer, without truncation, padding and dropout; FormatError when refused."""
    import tokenizers  # only programs that tokenize pay for it

    tokenizer: Any = guarded(where, lambda: tokenizers.Tokenizer.from_str(text))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None) is not None:
        tokenizer.model.dropout = None
    return tokenizer


def guarded(where: str, work: Callable[[], Any]) -> Any:
    """Run work of the `tokenizers` library on data from a file; its complaints become FormatError.

    The library raises bare Exception for malformed data and, where Rust panics, a BaseException of its own.
    """
    try:
        return work()
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError)):
            raise
        raise FormatError(f"{where}: the tokenizers library refuses it: {str(error)[:200]}") from error


def check_same_tokens(tokenizer: Any, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Compare tokenizer.json with tokenizer.ggml.tokens; only unused padding may be missing from the former.

    Raises FormatError naming the first difference.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    if len(vocabulary) == len(tokens) and vocabulary == dict(zip(tokens, range(len(tokens)), strict=True)):
        return  # compared at once; what follows says where the difference is
    by_id: list[str | None] = [None] * len(tokens)
    for token, i in vocabulary.items():
        if not 0 <= i < len(tokens):
            raise FormatError(
                f"{KEY}: has a token {i} ({token[:80]!r}); tokenizer.ggml.tokens ends at {len(tokens) - 1}"
            )
        by_id[i] = token
    for i, (theirs, ours) in enumerate(zip(by_id, tokens, strict=True)):
        if theirs != ours and not (theirs is None and types[i] == TokenType.UNUSED):
            shown = "absent" if theirs is None else repr(theirs[:80])
            raise FormatError(f"{KEY}: token {i} is {shown}; tokenizer.ggml.tokens has {ours[:80]!r}")


def read_tokenizer_json(text: str, where: str) -> TokenTable:
    """Read the text of a tokenizer.json: byte-level BPE, or SentencePiece in the form of BPE.

    Ids are those that the library gives. Raises FormatError when malformed, UnsupportedError for other kinds.
    """
    tokenizer = load(text, where)
    parsed = json.loads(tokenizer.to_str())  # the library's own spelling: merges as pairs, every key present
    model = parsed["model"]
    if model["type"] != "BPE":
        raise UnsupportedError(f"{where}: a tokenizer of type {model['type']}; supported is BPE")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model[key]:
            raise UnsupportedError(f"{where}: {key} is {model[key]!r}; supported is BPE without it")
    byte_level = any(part["type"] == "ByteLevel" for key in ("pre_tokenizer", "decoder") for part in _flat(parsed[key]))
    table = TokenTable(BPE if byte_level else SPM, where, json_text=text)
    _add_tokens(table, tokenizer, None if byte_level else model["unk_token"])
    table.prefix, table.suffix = _frame(parsed["post_processor"])
    if byte_level:
        _read_byte_level(table, parsed)
    else:
        _read_sentencepiece(table, parsed)
    return table


def _add_tokens(table: TokenTable, tokenizer: Any, unknown: str | None) -> None:
    added = tokenizer.get_added_tokens_decoder()
    for text, i in tokenizer.get_vocab(with_added_tokens=True).items():
        kind = TokenType.NORMAL
        if text == unknown:
            kind, table.unk_id = TokenType.UNKNOWN, i
        elif i in added:
            kind = TokenType.CONTROL if added[i].special else TokenType.USER_DEFINED
        elif table.model == SPM and _BYTE.match(text):
            kind = TokenType.BYTE
        table.add(i, text, kind)


def _read_byte_level(table: TokenTable, parsed: dict[str, Any]) -> None:
    for left, right in parsed["model"]["merges"]:
        if " " in left or " " in right:
            raise UnsupportedError(f"{table.where}: the merge {[left, right]} holds a space; GGUF cannot")
        table.merges.append(f"{left} {right}")
    normalizers = [part["type"] for part in _flat(parsed["normalizer"])]
    if normalizers:
        only_nfc = normalizers == ["NFC"]  # which other runtimes leave out too
        (table.remarks if only_nfc else table.unlike).append(f"text is normalised: {', '.join(normalizers)}")
    steps = _steps(parsed["pre_tokenizer"])
    entry = named_for(steps, len(table.texts)) if steps is not None else None
    table.pre = entry.name if entry else None
    if entry and entry.ignore_merges != parsed["model"]["ignore_merges"]:
        table.remarks.append(f"ignore_merges is not what the name {entry.name} implies")
    table.odd = _is_odd(parsed)


def _is_odd(parsed: dict[str, Any]) -> bool:
    """Whether a byte-level tokenizer.json has settings without a counterpart or added tokens with own rules."""
    model, added = parsed["model"], parsed["added_tokens"]
    if any(model[key] for key in ("unk_token", "fuse_unk", "byte_fallback")):
        return True
    if any(token[key] for token in added for key in ("single_word", "lstrip", "rstrip")):
        return True
    in_two_passes = len({token["normalized"] for token in added}) > 1
    whole = model["ignore_merges"] and any(token["content"] in model["vocab"] for token in added)
    return in_two_passes or whole


def _steps(pre_tokenizer: Any) -> tuple[str, ...] | None:
    """Express a byte-level pre-tokenizer as splits, or None where it is none of the known forms."""
    steps: list[str] = []
    mapped = False  # after ByteLevel the text is in byte letters; only ASCII splits mean the same there
    for part in _flat(pre_tokenizer):
        step = _step(part)
        if step is None or (mapped and not re.fullmatch(r"(\[0-9\])+", step)):
            return None
        mapped = mapped or part["type"] == "ByteLevel"
        steps += [step] if step else []
    return tuple(steps) if mapped else None


def _step(part: dict[str, Any]) -> str | None:
    kind, behavior = part["type"], part.get("behavior")
    if kind == "ByteLevel" and not part["add_prefix_space"]:
        return GPT_2 if part["use_regex"] else ""
    if kind == "Punctuation" and behavior == "Contiguous":
        return FALCON_PUNCTUATION
    if kind == "Split" and "Regex" in part["pattern"]:
        # to remove what lies between the matches is to isolate them, if they cover everything
        covering = behavior == "Removed" and part["invert"] and part["pattern"]["Regex"].endswith(r"|\s+")
        if covering or (behavior == "Isolated" and not part["invert"]):
            expression: str = part["pattern"]["Regex"]
            # a lone space left over is a piece anyway
            return GPT_2 if expression == GPT_2 + r"|\s+" else expression
    return None


def _read_sentencepiece(table: TokenTable, parsed: dict[str, Any]) -> None:
    table.pre = "default"
    ranks = _ranks_of_pieces(parsed["model"]["merges"])
    for i, text in table.texts.items():
        table.scores[i] = -float(ranks.get(text, 0))
    normal = [t for i, t in table.texts.items() if table.types[i] == TokenType.NORMAL and len(t) > 1]
    if any(text not in ranks for text in normal):
        table.unlike.append("some tokens are reached by no merge")
    if parsed["model"]["ignore_merges"]:
        table.unlike.append("ignore_merges is set")
    escaped = False
    for part in _flat(parsed["normalizer"]):
        if part["type"] == "Prepend" and part["prepend"] == _SPACE:
            table.add_space_prefix = True
        elif part["type"] == "Replace" and part["pattern"] == {"String": " "} and part["content"] == _SPACE:
            escaped = True
        else:
            table.unlike.append(f"text is normalised ({part['type']})")
    for part in _flat(parsed["pre_tokenizer"]):
        if part["type"] == "Metaspace" and part["replacement"] == _SPACE and not part["split"]:
            table.add_space_prefix |= part["prepend_scheme"] != "never"
            if table.add_space_prefix:
                table.remarks.append("a text that begins with a space gets no second one")
            escaped = True
        elif not (escaped and part["type"] == "Split" and part["pattern"] == {"String": " "}):
            table.unlike.append(f"text is split ({part['type']})")
    if not escaped:
        table.unlike.append("spaces are not escaped as SentencePiece does")


def _ranks_of_pieces(merges: list[list[str]]) -> dict[str, int]:
    """Say when each piece is made: the rank of its first merge.

    Merges made from scores list all the ways to a piece in one run; where the runs of several pieces overlap,
    the pieces have one score, such as LLaMA 2's runs of spaces, and get one rank.
    """
    runs: dict[str, list[int]] = {}
    for rank, (left, right) in enumerate(merges):
        runs.setdefault(left + right, [rank, rank])[1] = rank
    ranks: dict[str, int] = {}
    shared, end = 0, -1
    for piece, (first, last) in runs.items():  # in the order of their first ranks
        shared = first if first > end else shared
        end = max(end, last)
        ranks[piece] = shared
    return ranks


def _frame(post_processor: Any) -> tuple[list[int], list[int]]:
    """Return the ids that the post-processor puts before and after a single text."""
    prefix: list[int] = []
    suffix: list[int] = []
    for part in _flat(post_processor):
        if part["type"] == "TemplateProcessing":
            seen = False
            for piece in part["single"]:
                if "Sequence" in piece:
                    seen = True
                else:
                    ids = part["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
                    (suffix if seen else prefix).extend(ids)
        elif part["type"] in ("RobertaProcessing", "BertProcessing"):
            prefix.append(part["cls"][1])
            suffix.append(part["sep"][1])
    return prefix, suffix


def _flat(part: Any) -> list[dict[str, Any]]:
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    for key in ("normalizers", "pretokenizers", "decoders", "processors"):
        if key in part:
            return [inner for item in part[key] for inner in _flat(item)]
    return [part]
