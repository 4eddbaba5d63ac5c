"""Describes a tokenizer in a `.gguf` file: as llama.cpp knows it, and whole.

llama.cpp knows byte-level BPE by its merges and a named way to split text, and SentencePiece's BPE
(Llama 1 and 2, Mistral) by a score for each piece. Other tokenizers are refused, and so are those
that llama.cpp would read in another way. `gguf` itself can describe them, too, but only of a
folder, and it gives all pieces of a tokenizer.json one and the same score.

The whole tokenizer stands beside that, under the key that the format has for it, so that what
reads it there (`gguf_loading`) gets the same tokens; llama.cpp itself knows no normaliser.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as TokenizerCore
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers import PreTrainedTokenizerFast as FastTokenizer
from transformers.convert_slow_tokenizer import generate_merges

from objectives.models.base import ModelError
from objectives.models.gguf.ggml_types import require_gguf

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# What llama.cpp calls a way to split text, and the same for the library tokenizers.
_SPLITS: dict[str, pre_tokenizers.PreTokenizer] = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
    "llama-bpe": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}

# Where ways to split differ: digits, contractions, spaces, line breaks, punctuation, letters.
_SAMPLE = (
    "Who won in 2023, 95th time? It's Brendan Fraser's; they'LL see.\n\nJoe: 1234567  x\n"
    "Brandine:\tÉtés naïfs, 東京 …  (a_b)//c's   \n  end!?\nAnswer: don't 3.14"
)

# What stands for a space in a piece, and the pieces of the bytes.
_SPACE = "▁"
_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))

Merges = Sequence[Sequence[str]]


def add_tokenizer(writer: Any, tokenizer: Tokenizer, rows: int) -> None:
    """Add a tokenizer to what a `gguf.GGUFWriter` will write.

    Args:
        writer: Of the file.
        tokenizer: Byte-level BPE, or BPE of SentencePiece's pieces.
        rows: How many embeddings the model has.

    Raises:
        ModelError: If llama.cpp would read text otherwise than the tokenizer does, or there are
            more tokens than embeddings.
    """
    gguf = require_gguf()
    if not isinstance(tokenizer, FastTokenizer):
        raise _refused()
    core: TokenizerCore = tokenizer.backend_tokenizer
    described = json.loads(core.to_str())
    is_bpe = described["model"]["type"] == "BPE"
    merges: Merges = described["model"]["merges"] if is_bpe else ()
    texts = {token_id: text for text, token_id in core.get_vocab(with_added_tokens=True).items()}
    if max(texts) >= rows:
        raise ModelError(
            f"gguf: the tokenizer has token {max(texts)}, and the model only {rows} embeddings; "
            "name the tokenizer that the model was trained with"
        )
    types = dict.fromkeys(texts, gguf.TokenType.NORMAL) | {
        added["id"]: gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        for added in described["added_tokens"]
    }
    if is_bpe and described["model"]["byte_fallback"]:
        scores = piece_scores(core.get_vocab(with_added_tokens=False), merges)
        types |= {each: gguf.TokenType.BYTE for each, text in texts.items() if text in _BYTES}
        if tokenizer.unk_token_id is not None:
            types[tokenizer.unk_token_id] = gguf.TokenType.UNKNOWN
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([scores.get(texts.get(row, ""), 0.0) for row in range(rows)])
        writer.add_add_space_prefix(_has_space_prefix(core, scores))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_find_split(core, described))
        writer.add_token_merges([" ".join(merge) for merge in merges])
        writer.add_add_space_prefix(False)
    writer.add_token_list([texts.get(row, f"[PAD{row}]") for row in range(rows)])
    writer.add_token_types([types.get(row, gguf.TokenType.UNUSED) for row in range(rows)])
    _add_special(writer, tokenizer)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
    writer.add_string(gguf.Keys.Tokenizer.HF_JSON, core.to_str())


def piece_scores(vocabulary: Iterable[str], merges: Merges) -> dict[str, float]:
    """Return every piece's score: the later the merge that makes it, the lower, from 0.

    Of neighbours that could be joined, llama.cpp joins those whose whole scores highest. Pieces
    that no merge makes come last.
    """
    scores: dict[str, float] = {}
    for place, (left, right) in enumerate(merges):
        scores.setdefault(left + right, -float(place))
    return dict.fromkeys(vocabulary, -float(len(merges))) | scores


def _add_special(writer: Any, tokenizer: Tokenizer) -> None:
    for add, token_id in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token_id is not None:
            add(token_id)
    begun = tokenizer("a").input_ids
    writer.add_add_bos_token(bool(begun) and begun[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(bool(begun) and begun[-1] == tokenizer.eos_token_id)


def _find_split(core: TokenizerCore, described: dict[str, Any]) -> str:
    """Return llama.cpp's name for the way that a byte-level BPE splits text."""
    is_bpe = described["model"]["type"] == "BPE"
    if is_bpe and "ByteLevel" in json.dumps(described["pre_tokenizer"]):
        ids = core.encode(_SAMPLE).ids
        for name, split in _SPLITS.items():
            other = TokenizerCore.from_str(core.to_str())
            other.pre_tokenizer = split
            if other.encode(_SAMPLE).ids == ids:
                return name
    raise _refused()


def _has_space_prefix(core: TokenizerCore, scores: dict[str, float]) -> bool:
    """Return whether a tokenizer puts a space before a text, and else reads it as llama.cpp does.

    That is: spaces become pieces, any two pieces that make a third are joined, the best first, and
    what is no piece is its bytes.
    """
    vocabulary = core.get_vocab(with_added_tokens=False)
    if vocabulary.keys() >= _BYTES:
        added = {token.content for token in core.get_added_tokens_decoder().values()}
        # Every piece is in it once, for merges may leave out some of the pairs that make a piece.
        text = "\n".join([_SAMPLE, *(vocabulary.keys() - added)]).replace(_SPACE, " ")
        ids = core.encode(text).ids
        other = TokenizerCore.from_str(core.to_str())
        other.model = models.BPE(
            vocabulary, generate_merges(vocabulary, scores), byte_fallback=True
        )
        other.pre_tokenizer = None
        for prefix in (_SPACE, ""):
            other.normalizer = normalizers.Sequence(
                [normalizers.Prepend(prefix), normalizers.Replace(" ", _SPACE)]
            )
            if other.encode(text).ids == ids:
                return bool(prefix)
    raise _refused()


def _refused() -> ModelError:
    return ModelError(
        "gguf: the tokenizer cannot be written; it must be a byte-level BPE that splits text as "
        f"{', '.join(_SPLITS)} do, or a BPE of SentencePiece's pieces with all bytes among them, "
        "as those of Llama 1 and 2; convert it with llama.cpp's convert_hf_to_gguf.py"
    )
