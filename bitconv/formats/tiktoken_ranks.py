"""Reads a tiktoken tokenizer.model (one "base64 rank" line a token) into tokens and merges."""

from __future__ import annotations

import base64
import binascii

from bitconv.errors import FormatError
from bitconv.formats.token_table import TokenTable
from bitconv.formats.vocabulary import BPE, BYTE_LETTERS, TokenType

LLAMA_3_RANKS = 128000
LLAMA_3_SPECIAL = (
    "<|begin_of_text|>", "<|end_of_text|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(4)),
    "<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(5, 251)),
)  # fmt: skip
"""The 256 tokens that follow LLaMA 3's ranks, which the file does not hold."""


def looks_like_ranks(data: bytes) -> bool:
    """Say whether a tokenizer.model is a list of ranks rather than a SentencePiece model."""
    line = data[:4096].split(b"\n", 1)[0].split()
    return len(line) == 2 and line[1].isdigit() and not line[0].startswith(b"\n")


def read_tiktoken_ranks(data: bytes, where: str) -> TokenTable:
    """Read ranks; a vocabulary of LLaMA 3's size gets its name and, where absent, its special tokens later.

    Raises FormatError naming the line.
    """
    ranks = _parse(data, where)
    table = TokenTable(BPE, where)
    letters = str.maketrans({chr(byte): letter for byte, letter in enumerate(BYTE_LETTERS)})
    texts = {token: token.decode("latin-1").translate(letters) for token in ranks}
    for token, rank in ranks.items():
        table.add(rank, texts[token], TokenType.NORMAL)
    table.merges = [f"{texts[left]} {texts[right]}" for left, right in _merges(ranks)]
    if len(ranks) == LLAMA_3_RANKS:
        table.pre = "llama-bpe"
    return table


def add_llama_3_special(table: TokenTable) -> None:
    """Enter the special tokens that every LLaMA 3 tokenizer has after its ranks."""
    for i, text in enumerate(LLAMA_3_SPECIAL, LLAMA_3_RANKS):
        table.add(i, text, TokenType.CONTROL)
    table.bos_id, table.eos_id = LLAMA_3_RANKS, LLAMA_3_RANKS + 1
    table.prefix = [LLAMA_3_RANKS]


def _parse(data: bytes, where: str) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line:
            continue
        try:
            text, rank = line.split()
            token = base64.b64decode(text, validate=True)
            ranks[token] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise FormatError(f"{where}: line {number} is not a base64 token and its rank") from error
        if not token or ranks[token] < 0:
            raise FormatError(f"{where}: line {number} has an empty token or a negative rank")
    for byte in range(256):
        if bytes([byte]) not in ranks:
            raise FormatError(f"{where}: has no token for the byte {byte:#04x}")
    if len(set(ranks.values())) != len(ranks):
        raise FormatError(f"{where}: two tokens have the same rank")
    return ranks


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """List every pair of tokens that forms a token, by the rank of the result.

    tiktoken merges any neighbours whose union is a token, lowest rank first. Between the pairs that form the
    same token the order is free: only one of them can ever meet, since what lies inside the token has been
    merged by lower ranks before. The order here is the one of published files.
    """
    pairs = []
    for token in sorted(ranks, key=ranks.__getitem__):
        splits = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [pair for pair in splits if pair[0] in ranks and pair[1] in ranks]
        pairs += sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return pairs
