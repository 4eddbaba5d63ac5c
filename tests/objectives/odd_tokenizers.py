"""Tokenizers with the habits that real ones have: no pad token, added spaces, tokens that join."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXTS = (
    "Question: Who won the prize?\nAnswer: Ada won it.",
    "Joe: Who won the prize?\nBrandine: Ada won the prize.",
    "Assistant is a helpful AI.\nJoe: Where is it?\nAssistant: It is here , they say.",
)


def byte_level(
    *, special: Sequence[str] = ("<|endoftext|>",), eos: str | None = "<|endoftext|>"
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer as Qwen's and GPT-NeoX's: no BOS and no pad token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=list(special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos)


def sentencepiece_like(*, puts_eos: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer as Llama 2's: BOS first, a space before a text, bytes for the rest."""
    special = ("<unk>", "<s>", "</s>")
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    letters = sorted({letter for text in TEXTS for letter in text if letter not in " \n"})
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate([*pieces, *letters, "▁A", "Ad"])},
            merges=[("▁", "A"), ("A", "d")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if puts_eos else "<s> $A",
        special_tokens=[("<s>", 1), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
