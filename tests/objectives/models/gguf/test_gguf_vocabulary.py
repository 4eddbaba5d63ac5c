"""SentencePiece's pieces are in a `.gguf` file as llama.cpp joins them: by score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from objectives.models.base import ModelError
from objectives.models.gguf.loading import load_gguf
from objectives.models.gguf.vocabulary import piece_scores
from objectives.models.gguf.writing import write_gguf_model
from objectives.models.reading_tokenizers import read_tokenizer
from tests.objectives.byte_level_llama import make_byte_level_llama
from tests.objectives.odd_tokenizers import sentencepiece_like
from tests.objectives.sentencepiece_llama import READ, train_pieces

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Llama's folder."""
    folder = tmp_path_factory.mktemp("llama")
    train_pieces(folder)
    return folder


@pytest.fixture(scope="module")
def pieces(llama: Path) -> PreTrainedTokenizerFast:
    """Return its tokenizer."""
    return read(llama)


@pytest.fixture(scope="module")
def file(pieces: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model with it; it has a few more embeddings than the tokenizer has pieces."""
    path = tmp_path_factory.mktemp("models") / "llama.gguf"
    write_gguf_model(make_byte_level_llama(vocab_size=704), pieces, path, ggml_type="f32")
    return path


@pytest.fixture(scope="module")
def scores(file: Path) -> dict[str, float]:
    """Return the score that each piece has in the file."""
    return dict(zip(field(file, "tokens"), field(file, "scores"), strict=True))


def read(llama: Path) -> PreTrainedTokenizerFast:
    tokenizer = read_tokenizer(llama, "llama", trust_remote_code=False)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


def field(path: Path, key: str) -> Any:
    found = gguf.GGUFReader(path).get_field(f"tokenizer.ggml.{key}")
    return None if found is None else found.contents()


def joined_by_score(text: str, scores: Mapping[str, float]) -> list[str]:
    """Return a text's pieces as llama.cpp finds them, a byte for each that is none."""
    pieces = list(text)
    while True:
        wholes = [
            (scores[whole], -place)
            for place, whole in enumerate(map("".join, pairwise(pieces)))
            if whole in scores
        ]
        if not wholes:
            break
        place = -max(wholes)[1]
        pieces[place : place + 2] = ["".join(pieces[place : place + 2])]
    return [
        each
        for piece in pieces
        for each in (
            [piece] if piece in scores else [f"<0x{byte:02X}>" for byte in piece.encode()]
        )
    ]


def test_the_file_says_of_every_piece_what_sentencepiece_says(llama: Path, file: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    own = sentencepiece.SentencePieceProcessor(model_file=str(llama / "tokenizer.model"))
    tokens, types = field(file, "tokens"), field(file, "token_type")
    assert tokens[:700] == [own.id_to_piece(each) for each in range(700)]
    assert tokens[700:] == ["[PAD700]", "[PAD701]", "[PAD702]", "[PAD703]"]
    assert types[:3] == [2, 3, 3]
    assert types[3:259] == [6] * 256
    assert types[259:700] == [1] * 441
    assert types[700:] == [5] * 4

    def ordered(score: Callable[[int], float]) -> list[int]:
        return sorted((each for each in range(259, 700) if len(tokens[each]) > 1), key=score)

    assert ordered(field(file, "scores").__getitem__) == ordered(own.get_score)
    assert field(file, "model") == "llama"
    assert field(file, "pre") == "default"
    assert field(file, "merges") is None
    special = ("bos", "eos", "unknown", "padding")
    assert [field(file, f"{name}_token_id") for name in special] == [1, 2, 0, None]
    flags = ("add_bos_token", "add_eos_token", "add_space_prefix")
    assert [field(file, flag) for flag in flags] == [True, False, True]


def test_a_file_read_back_has_the_same_tokens_and_logits(
    pieces: PreTrainedTokenizerFast, file: Path
) -> None:
    model, tokenizer = load_gguf(file, dtype=torch.float32)
    for text in READ:
        ids = pieces(text).input_ids
        assert tokenizer(text).input_ids == ids
        assert tokenizer.decode(ids) == pieces.decode(ids)
    ids = torch.tensor([pieces(READ[0]).input_ids])
    with torch.no_grad():
        expected = make_byte_level_llama(vocab_size=704)(ids).logits
        torch.testing.assert_close(model(ids).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("has_prefix", [True, False])
def test_llama_cpps_description_alone_gives_the_same_tokens(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_prefix: bool
) -> None:
    tokenizer = read(llama)
    if not has_prefix:
        core = tokenizer.backend_tokenizer
        core.normalizer = normalizers.Replace(" ", "▁")
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        assert tokenizer.tokenize("a b") == ["a", "▁b"]
    path = tmp_path / "llama.gguf"
    write_gguf_model(make_byte_level_llama(vocab_size=700), tokenizer, path)
    assert field(path, "add_space_prefix") is has_prefix

    monkeypatch.setattr(gguf.Keys.Tokenizer, "HF_JSON", "tokenizer.not.there")
    _, described = load_gguf(path, dtype=torch.float32)
    assert (described.bos_token_id, described.eos_token_id) == (1, 2)
    for text in READ:
        ids = tokenizer(text).input_ids
        assert described(text).input_ids == ids
        assert described.decode(ids) == tokenizer.decode(ids)


@given(text=st.text("abdehinorstuw ADQTW:?.\n\té東2", max_size=60))
def test_joining_any_texts_pieces_by_score_gives_its_tokens(
    pieces: PreTrainedTokenizerFast, scores: Mapping[str, float], text: str
) -> None:
    put = f" {text}" if text else ""  # nothing is put before no text
    assert joined_by_score(put.replace(" ", "▁"), scores) == pieces.tokenize(text)


def test_a_later_merge_scores_lower_and_what_none_makes_lowest() -> None:
    merges = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")]
    scores = {"a": -4, "b": -4, "c": -4, "ab": 0, "bc": -1, "abc": -2}
    assert piece_scores(["a", "b", "c", "ab", "bc", "abc"], merges) == scores


def test_a_tokenizer_json_alone_will_do(tmp_path: Path) -> None:
    tokenizer, path = sentencepiece_like(), tmp_path / "model.gguf"
    write_gguf_model(make_byte_level_llama(), tokenizer, path)
    tokens, scores = field(path, "tokens"), field(path, "scores")
    assert (scores[tokens.index("▁A")], scores[tokens.index("Ad")]) == (0, -1)
    assert field(path, "add_space_prefix") is True
    _, read_back = load_gguf(path, dtype=torch.float32)
    for text in READ:
        assert read_back(text).input_ids == tokenizer(text).input_ids


def test_an_end_that_a_tokenizer_puts_last_is_put_there(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf_model(make_byte_level_llama(), sentencepiece_like(puts_eos=True), path)
    assert field(path, "add_eos_token") is True


def of_pieces(
    *more: str, merges: Sequence[tuple[str, str]] = (), without: str = ""
) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the bytes but one, of Llama's other letters, and of more pieces."""
    letters = [chr(code) for code in range(33, 127)]
    texts = dict.fromkeys(["<unk>", *BYTES, "▁", *letters, *more])
    texts.pop(without, None)
    core = Tokenizer(
        models.BPE(
            {text: place for place, text in enumerate(texts)},
            list(merges),
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def normalised(before: normalizers.Normalizer) -> PreTrainedTokenizerFast:
    tokenizer = of_pieces()
    core = tokenizer.backend_tokenizer
    core.normalizer = normalizers.Sequence([before, core.normalizer])
    return tokenizer


def of_most_likely_pieces() -> PreTrainedTokenizerFast:
    tokenizer = of_pieces("ab", merges=[("a", "b")])
    core = tokenizer.backend_tokenizer
    texts = sorted(core.get_vocab(), key=core.token_to_id)
    core.model = models.Unigram([(text, -1.0) for text in texts], unk_id=0, byte_fallback=True)
    return tokenizer


WHOLE = (("b", "c"), ("a", "bc"), ("a", "b"), ("ab", "c"))


def test_pieces_that_all_their_pairs_make_are_written(tmp_path: Path) -> None:
    tokenizer = of_pieces("ab", "bc", "abc", merges=WHOLE)
    write_gguf_model(make_byte_level_llama(), tokenizer, tmp_path / "model.gguf")
    assert tokenizer.tokenize("abc") == ["▁", "abc"]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: normalised(normalizers.Lowercase()), id="lower case"),
        pytest.param(lambda: normalised(normalizers.Replace("  ", " ")), id="single spaces"),
        pytest.param(ByT5Tokenizer, id="written in Python"),
        pytest.param(of_most_likely_pieces, id="unigram"),
        pytest.param(lambda: of_pieces(without="<0x07>"), id="no byte 7"),
        # llama.cpp would join "a" and "bc", and "a" and "b", which these tokenizers do not.
        pytest.param(
            lambda: of_pieces("ab", "bc", "abc", merges=[WHOLE[0], *WHOLE[2:]]), id="no a, bc"
        ),
        pytest.param(lambda: of_pieces("ab"), id="no a, b"),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_read_otherwise_is_refused(
    tmp_path: Path, make: Callable[[], PreTrainedTokenizerBase]
) -> None:
    with pytest.raises(ModelError, match="or a BPE of SentencePiece's pieces with all bytes"):
        write_gguf_model(make_byte_level_llama(), make(), tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []
