"""GGML types and .gguf files of models, and what a type leaves of weights."""
