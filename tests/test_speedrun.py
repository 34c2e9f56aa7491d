"""The work files of the speed benchmarks: a training by another recipe than today's is not taken for one of it."""

import json
from dataclasses import replace
from typing import Any

from cifarkit import recipes


def test_each_arm_has_a_recipe_but_the_peer(load: Any) -> None:
    speedrun = load("speedrun")
    assert [arm for arm in speedrun.ARMS if speedrun.recipe_of(arm, tiny=False) is None] == ["airbench94"]
    assert speedrun.recipe_of("95", tiny=False) == recipes.SPEEDRUN["95-percent"]
    assert speedrun.CHANGES.keys() < speedrun.ARMS.keys()
    for tiny in (False, True):
        plain = speedrun.recipe_of("4-minutes", tiny)
        assert all(speedrun.recipe_of(arm, tiny) != plain for arm in speedrun.CHANGES)


def test_a_training_by_an_older_recipe_is_not_current(load: Any) -> None:
    speedrun = load("speedrun")
    recipe = speedrun.recipe_of("cifarkit", tiny=False)
    record = {"arm": "cifarkit", "tiny": False, "recipe": speedrun.settings_of(recipe)}
    assert speedrun.is_current(json.loads(json.dumps(record)), tiny=False)
    assert not speedrun.is_current(record, tiny=True)
    assert not speedrun.is_current(record | {"recipe": speedrun.settings_of(replace(recipe, epochs=3))}, tiny=False)
    assert not speedrun.is_current({"arm": "cifarkit", "tiny": False}, tiny=False)  # from before recipes were kept
    assert speedrun.is_current({"arm": "airbench94", "tiny": False}, tiny=False)


def test_a_variant_of_an_older_recipe_is_not_current(load: Any) -> None:
    variants, speedrun = load("recipe_variants"), load("speedrun")
    recipe = replace(recipes.SPEEDRUN["1-minute"], keep=0.5, sides={0: 20, 2: 32})
    record = {"recipe": "1-minute", "variant": "keep=0.5 sides=0:20,2:32", "tiny": False}
    record["settings"] = speedrun.settings_of(recipe)
    assert variants.is_current(json.loads(json.dumps(record)), tiny=False)
    assert not variants.is_current(record | {"variant": "keep=0.5"}, tiny=False)
