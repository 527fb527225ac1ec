"""What a diffusion model does for a classifier: purification of attacked data, augmentation.

    python experiments/robustness.py split --num-train 300 --output few.npz
    python experiments/train.py digits --data.name npz --data.path few.npz --workdir runs/few
    python experiments/robustness.py purify --workdir runs/few --real few.npz
    python experiments/sample.py --workdir runs/few --num-samples 3000 --output synthetic.npz
    python experiments/robustness.py augment --real few.npz --synthetic synthetic.npz

Classifiers and diffusion model see the same few digits; all the others test them. Figures are
means over several classifiers of different seeds, with the standard deviation between them; the
last two commands also draw them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.typing import ArrayLike

import diffjax as dj
from cli import parse_args, prepare_output, run_script
from configs import CONFIGS
from denoisers import sampling_denoiser
from diffjax import data
from diffjax.networks import Functional, classifier
from diffjax.training import make_mesh
from diffjax.transforms.editing import tail
from model import SampleOptions, make_levels, make_schedule
from pictures import save_archive
from robustness_pictures import NUM_SHOWN, Accuracies, save_accuracies, save_purification
from runs import image_shape, load_run


@dataclass(frozen=True, kw_only=True)
class Split:
    """Write the first of the digits as a training set of their own."""

    num_train: int = 300
    """how many"""
    output: Path = Path("few.npz")
    """FILE.npz for images and labels"""


@dataclass(frozen=True, kw_only=True)
class Classifiers:
    """The classifiers that are tested."""

    real: Path = Path("few.npz")
    """the training set, as `split` writes it; all digits behind it are for testing"""
    num_seen: int = 0
    """digits at the start that are not tested, where the diffusion model has seen more of them
    than the classifiers"""
    num_seeds: int = 5
    """classifiers, of different initial weights and batches"""
    num_steps: int = 600
    """training steps of each, with 64 digits"""
    num_tested: int = 1000
    """digits to test on, at most"""
    output: Path | None = None
    """FILE.png for a picture of the result; by default purified.png or augmented.png"""


@dataclass(frozen=True, kw_only=True)
class Purify(Classifiers):
    """Attack classifiers, and undo it by noising and denoising."""

    workdir: Path
    """the run of the diffusion model"""
    radius: float = 0.2
    """largest change of a pixel by the attack, of the range from -1 to 1"""
    strength: float = 0.25
    """share of the grid that purification walks"""
    grid_steps: int = 24
    """steps of the whole grid"""
    num_draws: int = 8
    """purifications of each digit; the probabilities that the classifier gives them are averaged"""


@dataclass(frozen=True, kw_only=True)
class Augment(Classifiers):
    """Train classifiers on few digits with and without synthetic ones."""

    synthetic: Path
    """FILE.npz of sample.py"""
    share: float = 0.5
    """of a batch that is synthetic"""


Args = Split | Purify | Augment
DIGIT = (8, 8, 1)


class Digits(NamedTuple):
    """Images [N, 8, 8, 1] in [-1, 1] and labels [N]."""

    images: Array
    labels: Array


def read_digits(path: Path) -> Digits:
    """Digits of an archive.

    Raises:
      ValueError: it has no labels, or its images are no digits.
    """
    source = data.npz(path)
    if source.shape != DIGIT or source.labels is None:
        without = " without labels" if source.labels is None else ""
        raise ValueError(
            f"{path} holds images {source.shape}{without}; needed are labelled 8x8 digits."
        )
    return as_digits(source.images, source.labels)


def as_digits(images: Any, labels: Any) -> Digits:
    scaled = jnp.asarray(images, jnp.float32) / 127.5 - 1.0
    return Digits(scaled, jnp.asarray(labels, jnp.int32))


def all_digits() -> tuple[np.ndarray, np.ndarray]:
    source = data.load("digits")
    examples = [source[i] for i in range(len(source))]
    images, labels = (np.stack([each[name] for each in examples]) for name in ("image", "label"))
    return images, labels


def split(args: Split) -> None:
    images, labels = all_digits()
    if not 10 <= args.num_train < len(images):
        raise ValueError(f"--num-train is {args.num_train}; it must be 10 to {len(images) - 1}.")
    output = prepare_output(args.output, ".npz")
    save_archive(output, images[: args.num_train], labels[: args.num_train])
    print(f"Wrote the first {args.num_train} of {len(images)} digits to {args.output}")


def read_sets(args: Classifiers) -> tuple[Digits, Digits]:
    """The training set, and the digits behind it."""
    if args.num_tested < 1:
        raise ValueError(f"--num-tested is {args.num_tested}; at least one digit is needed.")
    real = read_digits(args.real)
    images, labels = all_digits()
    first = max(len(real.labels), args.num_seen)
    if first >= len(images):
        raise ValueError(
            f"None of the {len(images)} digits is left for testing: {args.real} holds "
            f"{len(real.labels)}, and --num-seen is {args.num_seen}."
        )
    rest = slice(first, first + args.num_tested)
    return real, as_digits(images[rest], labels[rest])


def fit(
    key: Array, network: Functional, real: Digits, synthetic: Digits, share: float, num_steps: int
) -> Any:
    """Train a classifier by Adam on batches of 64, of which a share is synthetic."""
    init_key, key = jax.random.split(key)
    start, improve = trainer(network, num_steps)
    state = start(init_key)
    # not a scan: on a CPU the gradients of convolutions are slow within loops
    for i in range(num_steps):
        state = improve(state, jax.random.fold_in(key, i), real, synthetic, share)
    return state.params


@cache
def trainer(network: Functional, num_steps: int) -> tuple[Callable, Callable]:
    """The start of a training and one step of it, compiled."""
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, num_steps))
    loss = dj.classifier_loss(network.apply, clean_level)
    step = dj.make_train_step(loss, optimizer, ema_decay=())

    def draw(key: Array, digits: Digits) -> Digits:
        chosen = jax.random.randint(key, (64,), 0, len(digits.labels))
        return jax.tree.map(lambda leaf: leaf[chosen], digits)

    def improve(state, key: Array, real: Digits, synthetic: Digits, share: Array):
        keys = jax.random.split(key, 3)
        made = jnp.arange(64) < 64 * share
        pick = lambda a, b: jnp.where(made.reshape(-1, *(1,) * (a.ndim - 1)), a, b)
        batch = jax.tree.map(pick, draw(keys[0], synthetic), draw(keys[1], real))
        return step(state, {"x0": batch.images, "labels": batch.labels}, keys[2])[0]

    start = jax.jit(lambda key: dj.init_train_state(network.init(key), optimizer, ema_decay=()))
    return start, jax.jit(improve, donate_argnums=0)


def clean_level(t: ArrayLike) -> dj.NoiseLevel:
    """No noise, whatever the time: what classifiers are trained at and attacked at."""
    zero = jnp.zeros(jnp.shape(t))
    return dj.NoiseLevel(t=zero, alpha=zero + 1.0, sigma=zero)


def purify(args: Purify) -> None:
    if args.num_draws < 1:
        raise ValueError(f"--num-draws is {args.num_draws}; at least one is needed.")
    if args.radius < 0.0:
        raise ValueError(f"--radius is {args.radius}; an attack moves pixels by 0 or more.")
    output = prepare_output(args.output or Path("purified.png"), ".png")
    (real, tested), network = read_sets(args), make_classifier()
    weights, redraw = load_purifier(args)
    clean = clean_level(0.0)

    @jax.jit
    def test(weights, params, key):
        attack_key, key = jax.random.split(key)
        log_prob = dj.class_log_prob(network.apply, params, tested.labels)
        attacked = dj.pgd_attack(
            attack_key, lambda x: log_prob(x, clean), tested.images, radius=args.radius
        )
        guess = partial(probabilities, network, params)

        def purified(x):
            def draw(key):
                images = redraw(weights, key, x)
                return images[:NUM_SHOWN], guess(images)

            # one draw has the class of the digit by chance, many tell its probability
            images, guesses = lax.map(draw, jax.random.split(key, args.num_draws))
            return images[0], guesses.mean(axis=0)

        (image, restored), (_, unharmed) = purified(attacked), purified(tested.images)
        guesses = guess(tested.images), guess(attacked), restored, unharmed
        return jnp.argmax(jnp.stack(guesses), axis=-1), attacked[:NUM_SHOWN], image

    guesses, shown = [], []
    for seed in range(args.num_seeds):
        params = fit(jax.random.key(seed), network, real, real, 0.0, args.num_steps)
        guess, *images = jax.device_get(test(weights, params, jax.random.key(seed)))
        guesses.append(guess)
        shown.append(images)
    names = "as they are", "attacked", "attacked and purified", "purified alone"
    right = np.mean(np.stack(guesses, axis=1) == np.asarray(tested.labels), axis=-1)
    found: Accuracies = dict(zip(names, right))
    print_table(found)
    # the first digits, as the first classifier sees them
    first, labels = (np.asarray(leaf[:NUM_SHOWN]) for leaf in tested)
    save_purification(output, found, [first, *shown[0]], guesses[0][:3, :NUM_SHOWN], labels)
    print(f"Wrote {output}")


def load_purifier(args: Purify) -> tuple[Any, Callable[[Any, Array, Array], Array]]:
    """The weights of the run, and `redraw(weights, key, images)`: noised and denoised anew.

    Raises:
      ValueError: the run makes no digits, or none without a label; or the strength leaves no step.
    """
    run = load_run(args.workdir, make_mesh())
    null, made = run.config.network.num_classes, image_shape(run.config)
    if made != DIGIT:
        raise ValueError(f"{args.workdir} makes images {made}; needed are 8x8 digits.")
    if null is None or not run.config.network.cond_drop_prob:
        raise ValueError(f"{args.workdir} knows no digits without a label; it cannot purify them.")
    options = SampleOptions(num_steps=args.grid_steps)
    levels = make_levels(options, make_schedule(run.config.diffusion, run.params))
    # refuses a strength before any classifier is trained
    tail(levels, args.strength)
    denoiser = sampling_denoiser(run.config, run.network, options)
    walk = {"solver": dj.ddim(eta=1.0), "levels": levels, "strength": args.strength}

    def redraw(weights: Any, key: Array, images: Array) -> Array:
        denoise = denoiser(weights, jnp.full(len(images), null, jnp.int32))
        return dj.image_to_image(key, images, denoise, **walk)

    return run.params, redraw


def augment(args: Augment) -> None:
    if not 0.0 < args.share < 1.0:
        raise ValueError(f"--share is {args.share}; it must be between 0 and 1.")
    output = prepare_output(args.output or Path("augmented.png"), ".png")
    (real, tested), network = read_sets(args), make_classifier()
    synthetic = read_digits(args.synthetic)
    guess = jax.jit(lambda params: jnp.argmax(probabilities(network, params, tested.images), -1))
    names = f"{len(real.labels)} real digits", f"and {len(synthetic.labels)} synthetic ones"
    found = {}
    for name, share in zip(names, (0.0, args.share)):
        trained = (
            fit(jax.random.key(seed), network, real, synthetic, share, args.num_steps)
            for seed in range(args.num_seeds)
        )
        found[name] = np.array([np.mean(guess(params) == tested.labels) for params in trained])
    print_table(found)
    save_accuracies(output, found)
    print(f"Wrote {output}")


def make_classifier() -> Functional:
    """The network of the configuration digits_classifier."""
    return classifier(CONFIGS["digits_classifier"].network)


def probabilities(network: Functional, params: Any, images: Array) -> Array:
    """Of each class for each image, [N, classes]."""
    return jax.nn.softmax(network.apply(params, images, jnp.zeros(len(images))))


def print_table(found: Accuracies) -> None:
    """Means over the classifiers and standard deviations between them, as Markdown."""
    print("| digits | accuracy, % | standard deviation between seeds |\n| --- | --- | --- |")
    for name, values in found.items():
        print(f"| {name} | {100 * values.mean():.1f} | {100 * values.std(ddof=1):.1f} |")


COMMANDS: dict[type, Callable[[Any], None]] = {Split: split, Purify: purify, Augment: augment}


def main() -> None:
    args = parse_args(Args, description=__doc__)
    if isinstance(args, Classifiers) and args.num_seeds < 2:
        raise ValueError(f"--num-seeds is {args.num_seeds}; a spread needs at least 2.")
    COMMANDS[type(args)](args)


if __name__ == "__main__":
    run_script(main)
