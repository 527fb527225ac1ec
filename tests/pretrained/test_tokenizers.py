import json
import struct
import warnings

import numpy as np
import pytest

from diffjax.pretrained.sentencepiece import read_pieces
from diffjax.pretrained.tokenizers import load_tokenizer

WORDS = ["a</w>", "cat</w>", "dog</w>", "!</w>", "at</w>", "do"]
MERGES = ["a t</w>", "c at</w>", "d o", "do g</w>"]


@pytest.fixture
def clip(tmp_path):
    """The files of a CLIP tokenizer of a few words: texts of 8 tokens with their ends."""
    letters = [chr(code) + end for code in range(33, 127) for end in ("", "</w>")]
    words = list(dict.fromkeys([*letters, *WORDS, "<|startoftext|>", "<|endoftext|>"]))
    vocabulary = {word: number for number, word in enumerate(words)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    notes = {"model_max_length": 8, "pad_token": {"content": "!"}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(notes))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 8}))
    return tmp_path, vocabulary


def test_clip_merges_pairs_between_its_ends(clip):
    folder, known = clip
    tokens = load_tokenizer(folder)(["A  cat!"])
    start, end, pad = known["<|startoftext|>"], known["<|endoftext|>"], known["!"]
    words = [known["a</w>"], known["cat</w>"], pad]
    assert tokens.ids.tolist() == [[start, *words, end, pad, pad, pad]]
    assert tokens.mask.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0]]
    assert tokens.ids.dtype == tokens.mask.dtype == np.int32


def test_a_saved_engine_gives_the_same_as_the_files_that_it_was_made_of(clip, tmp_path):
    from diffjax.pretrained import tokenizers

    folder, _ = clip
    here = load_tokenizer(folder)
    (tmp_path / "new").mkdir()
    engine = tokenizers._engine(folder, "!")
    engine.enable_truncation(4)
    engine.save(str(tmp_path / "new" / "tokenizer.json"))
    there = load_tokenizer(tmp_path / "new")
    texts = ["a cat", "", "don't a1 cat, ü dog!"]
    assert [there.encode(text) for text in texts] == [here.encode(text) for text in texts]
    assert (there.start, there.end) == (here.start, here.end)


def test_what_is_cut_is_shown(clip):
    tokenizer = load_tokenizer(clip[0])
    with pytest.warns(UserWarning, match="has 8 tokens, 6 are read; left out is: 'dog cat'"):
        tokens = tokenizer(["a cat a cat a cat dog cat"])
    assert tokens.ids.shape == (1, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer(["a cat a cat a cat"])


def test_long_prompts_fill_chunks_and_short_ones_get_as_many(clip):
    folder, known = clip
    tokenizer = load_tokenizer(folder)
    tokens = tokenizer(["a cat a cat a cat dog", "a"], chunks=None)
    assert tokens.ids.shape == tokens.mask.shape == tokens.weights.shape == (2, 16)
    parts = tokens.ids.reshape(2, 2, 8)
    assert (parts[:, :, 0] == known["<|startoftext|>"]).all()
    whole = tokenizer(["a cat a cat a cat", "dog", "a", ""]).ids
    np.testing.assert_array_equal(parts.reshape(4, 8), whole)


def test_emphasis_weights_the_tokens_of_its_words(clip):
    tokenizer = load_tokenizer(clip[0])
    plain, weighted = tokenizer(["a cat dog"]), tokenizer(["a (cat:1.5) dog"], emphasis=True)
    np.testing.assert_array_equal(plain.ids, weighted.ids)
    np.testing.assert_allclose(weighted.weights, [[1, 1, 1.5, 1, 1, 1, 1, 1]])
    assert (plain.weights == 1).all()
    assert tokenizer(["(a)"]).ids.tolist() != tokenizer(["(a)"], emphasis=True).ids.tolist()


def test_an_added_token_stands_for_its_ids(clip):
    folder, known = clip
    tokenizer = load_tokenizer(folder).with_token("<toy>", [900, 901])
    expected = [known["a</w>"], 900, 901, known["cat</w>"]]
    assert tokenizer(["a <toy> cat"]).ids[0, 1:5].tolist() == expected
    with pytest.raises(ValueError, match="known already"):
        tokenizer.with_token("<toy>", [902])


def varint(number):
    parts = [number & 127 | 128 * (number > 127)]
    return bytes(parts) + (varint(number >> 7) if number > 127 else b"")


def field(number, value):
    return varint(number << 3 | 2) + varint(len(value)) + value


def piece(text, score, kind=1):
    return field(
        1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes([24, kind])
    )


def test_the_most_probable_pieces_of_a_sentencepiece_model(tmp_path):
    pieces = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), ("▁cat", -1.0, 1)]
    pieces += [("▁a", -2.0, 1), ("▁", -3.0, 1), ("c", -4.0, 1), ("▁ca", -2.0, 1), ("t", -4.0, 1)]
    trainer = field(2, varint(40 << 3) + varint(2))
    path = tmp_path / "spiece.model"
    path.write_bytes(b"".join(piece(*each) for each in pieces) + trainer)
    assert [text for text, _ in read_pieces(path).vocabulary] == [text for text, *_ in pieces]
    tokens = load_tokenizer(tmp_path)(["a cat", "at"], length=6)
    assert tokens.ids.tolist() == [[4, 3, 1, 0, 0, 0], [4, 8, 1, 0, 0, 0]]
    assert tokens.mask.tolist() == [[1, 1, 1, 0, 0, 0]] * 2
    for damaged in (path.read_bytes()[:-3], b"PK\x03\x04 something else", b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"spiece\.model"):
            read_pieces(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", "{"), ("vocab.json", "[]"), ("vocab.json", "{}"), ("merges.txt", "a b c")],
)
def test_damaged_files_end_in_one_line_that_names_them(clip, name, content):
    (clip[0] / name).write_text(content)
    with pytest.raises(ValueError, match=name) as error:
        load_tokenizer(clip[0])
    assert "\n" not in str(error.value)


def test_a_folder_without_tokenizer_says_what_is_needed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"spiece\.model"):
        load_tokenizer(tmp_path)
