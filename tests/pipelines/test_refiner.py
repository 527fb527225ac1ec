from functools import partial

import jax
import numpy as np
import pytest
from constant_system import constant_system

import diffjax as dj
from diffjax.pipelines import handover, make_plan, refined, walk, with_refiner
from diffjax.pipelines.refiner import REFINER
from diffjax.pretrained import read_scheduler

DDIM = {"_class_name": "DDIMScheduler", "clip_sample": False, "prediction_type": "sample"}
SCHEDULER = read_scheduler(DDIM)


def unclean(levels):
    """Without the last level, at which nothing is left of all estimates but the last."""
    return jax.tree.map(lambda leaf: leaf[:-1], levels)


@pytest.mark.parametrize("share", [0.35, 0.8])
def test_a_refined_walk_is_a_walk_to_the_handover_and_one_of_the_refiner(share):
    system = constant_system(lambda params, value: params["scale"] * value)
    refiner = constant_system(lambda params, value: params - value)
    params = {"scale": 2.0, REFINER: 1.0}
    told = [{"value": np.array([0.5, 0.2])}, {"value": np.array([0.1, -0.3])}]
    told_refiner = [{"value": np.array([0.7, -0.1])}, {"value": np.array([0.0, 0.4])}]
    keys = jax.random.split(jax.random.key(0), 2)
    noise = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    options = {"guidance": partial(dj.classifier_free, guidance_scale=3.0)}

    def run(system, params, conditions, x, part, cut=lambda levels: levels):
        plan = make_plan(SCHEDULER, 10, part=part)
        options["solver"], options["levels"] = plan.solver, cut(plan.levels)
        return walk(system, params, keys, conditions, x, **options)

    x = run(system, params, told, noise, (0.0, share))
    expected = run(refiner, params[REFINER], told_refiner, x, (share, 1.0), unclean)
    both = refined(system, refiner, until=handover(SCHEDULER, SCHEDULER, share))
    conditions = with_refiner(told, told_refiner)
    found = run(both, params, conditions, noise, (0.0, 1.0), unclean)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - run(system, params, told, noise, (0.0, 1.0), unclean)).max() > 0.01


def test_networks_that_do_not_go_on_from_each_other_are_refused():
    longer = read_scheduler({**DDIM, "beta_end": 0.03})
    with pytest.raises(ValueError, match=r"trained with beta_end 0\.03, the model with 0\.02"):
        handover(SCHEDULER, longer, 0.8)
    edm = read_scheduler({"_class_name": "EDMEulerScheduler"})
    with pytest.raises(ValueError, match="EDMEulerScheduler tells its network no times"):
        handover(edm, edm, 0.8)
    system = constant_system()
    with pytest.raises(ValueError, match="the model predicts x0, the refiner eps"):
        refined(system, system._replace(parameterization=dj.eps), until=200)
    with pytest.raises(ValueError, match="takes no refiner"):
        refined(system._replace(weaker=system.apply), system, until=200)
    with pytest.raises(ValueError, match="2 conditions and its refiner 1"):
        with_refiner([{}, {}], [{}])
