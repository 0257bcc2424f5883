"""Loads a GGUF file and executes it."""
