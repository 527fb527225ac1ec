"""Every word has a token, and what has none is refused by name."""

import numpy as np
import pytest

from diffjax.data.words import encode_words, read_words, train_words

CAPTIONS = ["a red circle", "two blue squares left of a red circle"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_words(CAPTIONS)


def test_rows_hold_the_words_between_marks_and_the_mask_hides_the_rest(tokenizer):
    tokens, mask = encode_words(tokenizer, ["A red, red circle!", ""], 8)
    words = [tokenizer.id_to_token(token) for token in tokens[0]]
    assert words == ["[start]", "a", "red", "red", "circle", "[end]", "[pad]", "[pad]"]
    np.testing.assert_array_equal(mask.sum(axis=1), [6, 2])
    assert (tokens[mask == 0] == 0).all()


def test_a_tokenizer_comes_back_from_its_file(tokenizer, tmp_path):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    again = read_words(tmp_path / "tokenizer.json")
    for one, other in zip(encode_words(tokenizer, CAPTIONS, 12), encode_words(again, CAPTIONS, 12)):
        np.testing.assert_array_equal(one, other)


def test_captions_in_any_order_give_the_same_tokens():
    orders = [train_words(order).get_vocab() for order in (CAPTIONS, CAPTIONS[::-1])]
    assert orders[0] == orders[1]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a red cirle", "'cirle'.*Did you mean 'circle'"),
        ("a pink circle", "'pink'.*It knows: a, blue"),
        ("a red circle left of a red circle", "8 words; this model reads at most 6"),
    ],
)
def test_prompts_that_no_caption_is_like_are_refused(tokenizer, prompt, message):
    with pytest.raises(ValueError, match=message):
        encode_words(tokenizer, [prompt], 8)


def test_files_that_hold_no_tokenizer_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="not found"):
        read_words(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="not a tokenizer"):
        read_words(tmp_path / "tokenizer.json")
