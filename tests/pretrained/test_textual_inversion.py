import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffjax.networks.clip import CLIPTextConfig, clip_text
from diffjax.pretrained import Components, Model, Tokenizer
from diffjax.pretrained.textual_inversion import load_embedding, save_embedding

CONFIG = CLIPTextConfig(
    vocab_size=9, hidden_size=6, intermediate_size=8, num_heads=2, num_layers=1, eos_token=2
)


@pytest.fixture(scope="module")
def parts():
    network = clip_text(CONFIG)
    model = Model(CONFIG, network, network.init(jax.random.key(0)))
    encode = lambda text: [int(word) for word in text.split()]
    tokenizer = Tokenizer(encode, str, start=(7,), end=(8,), pad=8, max_length=8)
    return Components("", {}, {"text_encoder": model}, {"tokenizer": tokenizer}, {})


def test_a_word_that_copies_known_vectors_is_encoded_like_the_known_words(parts, tmp_path):
    table = np.asarray(parts.models["text_encoder"].params["token_embedding"]["embedding"])
    save_file({"<toy>": table[2:4]}, tmp_path / "learned.safetensors")
    more = load_embedding(tmp_path / "learned.safetensors", parts)
    model, tokens = more.models["text_encoder"], more.tokenizers["tokenizer"]
    learned, known = tokens(["1 <toy> 5"]).ids, tokens(["1 2 3 5"]).ids
    assert learned.max() == 10
    apply = jax.jit(model.network.apply)
    found, expected = apply(model.params, learned), apply(model.params, known)
    np.testing.assert_allclose(found.last, expected.last, atol=1e-5)
    # the largest token is not where the text ends
    np.testing.assert_allclose(found.pooled, expected.pooled, atol=1e-5)


def test_files_without_a_word_give_it_their_name(parts, tmp_path):
    save_file({"emb_params": np.ones((1, 6), np.float32)}, tmp_path / "toy.safetensors")
    more = load_embedding(tmp_path / "toy.safetensors", parts)
    assert more.tokenizers["tokenizer"](["<toy>"]).ids[0, 1] == 9
    with pytest.raises(ValueError, match="known already"):
        load_embedding(tmp_path / "toy.safetensors", more)
    named = load_embedding(tmp_path / "toy.safetensors", more, token="<other>")
    assert named.tokenizers["tokenizer"](["<toy> <other>"]).ids[0, 1:3].tolist() == [9, 10]


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("<toy>", 5, "another model"),
        ("<toy>", (), "vectors are"),
        ("clip_g", 6, "the system lacks"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(parts, tmp_path, name, size, reason):
    save_file({name: np.ones(size, np.float32)}, tmp_path / "toy.safetensors")
    with pytest.raises(ValueError, match=reason):
        load_embedding(tmp_path / "toy.safetensors", parts)


def test_a_saved_word_is_read_again_under_its_name(parts, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
    save_embedding(tmp_path / "any.safetensors", "<toy>", {"text_encoder": vectors})
    more = load_embedding(tmp_path / "any.safetensors", parts)
    assert more.tokenizers["tokenizer"](["<toy>"]).ids[0, 1:3].tolist() == [9, 10]
    table = more.models["text_encoder"].params["token_embedding"]["embedding"]
    np.testing.assert_array_equal(table[9:], vectors)
    np.testing.assert_array_equal(table[:9], parts.models["text_encoder"].params
                                  ["token_embedding"]["embedding"])  # fmt: skip


def test_a_word_of_two_encoders_is_saved_for_both(parts, tmp_path):
    both = {"text_encoder": np.ones((1, 6)), "text_encoder_2": np.full((1, 6), 2.0)}
    save_embedding(tmp_path / "toy.safetensors", "<toy>", both)
    two = parts._replace(
        models={**parts.models, "text_encoder_2": parts.models["text_encoder"]},
        tokenizers={**parts.tokenizers, "tokenizer_2": parts.tokenizers["tokenizer"]},
    )
    more = load_embedding(tmp_path / "toy.safetensors", two)
    for name, value in (("text_encoder", 1.0), ("text_encoder_2", 2.0)):
        assert (more.models[name].params["token_embedding"]["embedding"][9] == value).all()
    with pytest.raises(ValueError, match="vectors are for other"):
        save_embedding(tmp_path / "toy.safetensors", "<toy>", {"other": np.ones((1, 6))})
