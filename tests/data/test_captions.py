"""Mixtures of captions: the share that was asked for, decided by seed, image and epoch alone."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from diffjax import data
from diffjax.data.captions import DALL_E_3, all_captions, mixed_captions
from diffjax.data.shapes import HELD_OUT
from diffjax.data.words import encode_words, train_words

COUNT = 40
EXAMPLES = [{"caption": f"short {i}", "long_caption": f"long {i}"} for i in range(COUNT)]
SOURCE = data.Arrays(
    np.zeros((COUNT, 2, 2, 1), np.uint8),
    captions=[each["caption"] for each in EXAMPLES],
    long_captions=[each["long_caption"] for each in EXAMPLES],
)


def texts(batch_size, count, *, share=0.5, seed=0, start=0):
    """The captions of some batches, in the order of the stream."""
    encode = lambda captions: {"text": np.array(captions)}
    stream = data.batches(
        SOURCE, batch_size, seed=seed, encode_captions=encode, long_captions=share
    )
    if start:
        stream.set_state({**stream.get_state(), "batches": start})
    found = [text for _ in range(count) for text in next(stream)["text"].tolist()]
    stream.close()
    return found


def test_the_share_of_long_captions_is_the_one_asked_for():
    positions = np.arange(20_000)
    mixed = mixed_captions(EXAMPLES * 500, DALL_E_3, seed=1, positions=positions)
    share = np.mean([text.startswith("long") for text in mixed])
    assert abs(share - DALL_E_3) < 4 * np.sqrt(DALL_E_3 * (1 - DALL_E_3) / 20_000)


def test_every_caption_stays_with_its_image():
    mixed = mixed_captions(EXAMPLES, 0.5, seed=0, positions=np.arange(COUNT))
    assert [int(text.split()[1]) for text in mixed] == list(range(COUNT))


def test_an_epoch_mixes_anew_and_a_stream_that_goes_on_mixes_as_before():
    whole = texts(8, 10)
    first, second = whole[:COUNT], whole[COUNT:]
    kinds = lambda epoch: {text.split()[1]: text.split()[0] for text in epoch}
    assert kinds(first) != kinds(second)
    assert whole == texts(20, 4)
    assert whole[48:] == texts(8, 4, start=6)
    assert whole != texts(8, 10, seed=1)


@pytest.mark.parametrize(("share", "kind"), [(0.0, "short"), (1.0, "long")])
def test_a_share_of_nothing_or_all_leaves_one_kind(share, kind):
    assert {text.split()[0] for text in texts(8, 5, share=share)} == {kind}
    assert all_captions(EXAMPLES[0], share) == [f"{kind} 0"]


@pytest.mark.parametrize(
    ("source", "share", "message"),
    [
        (data.Arrays(SOURCE.images, captions=SOURCE.captions), 0.5, "no long captions"),
        (data.Arrays(SOURCE.images), 0.0, "no captions"),
        (SOURCE, 1.5, "1.5; it is a probability"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(source, share, message):
    with pytest.raises(ValueError, match=message):
        data.batches(source, 4, seed=0, encode_captions=dict, long_captions=share)


def test_long_captions_of_a_folder_come_from_their_own_file(tmp_path):
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)
    for file, kind in (("captions.jsonl", "short"), ("long_captions.jsonl", "long")):
        lines = [{"file_name": name, "text": f"{kind} {name}"} for name in ("a.png", "b.png")]
        (tmp_path / file).write_text("\n".join(map(json.dumps, lines)))
    example = data.image_folder(tmp_path, 4)[1]
    assert (example["caption"], example["long_caption"]) == ("short b.png", "long b.png")
    kept = data.in_memory(data.image_folder(tmp_path, 4))[0]
    assert (kept["caption"], kept["long_caption"]) == ("short a.png", "long a.png")


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_the_long_caption_of_shapes_says_all_that_the_short_one_says_and_every_size(split):
    source = data.shapes(split)
    for index in range(200):
        short, long = source[index]["caption"], source[index]["long_caption"]
        assert set(re.findall(r"\w+", short)) <= set(long.split()), (short, long)
        groups = re.findall(r"(?:a|two|three) (?:small|large) (\w+) (circle|square|triangle)", long)
        assert len(groups) == len(source.scene(index).groups)
        assert (split == "held_out") == any(group in HELD_OUT for group in groups)


def test_the_words_of_long_captions_of_shapes_fit_into_28_tokens():
    source = data.shapes()
    texts = [text for i in range(400) for text in all_captions(source[i], DALL_E_3)]
    tokenizer = train_words(texts)
    _, mask = encode_words(tokenizer, texts, 28)
    assert mask.sum(axis=1).max() == 28
