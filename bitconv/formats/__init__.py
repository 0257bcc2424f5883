"""Bytes on disk: GGUF files, Hugging Face checkpoints, tokenizers; no knowledge of models or quantisation."""
