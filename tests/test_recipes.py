import json
import re
from dataclasses import replace

import pytest

from minigenie.config import from_dict, override, to_dict
from minigenie.ending import EndingConfig
from minigenie.pipeline import Recipe
from minigenie.recipes import RECIPES, adjusted, coinrun, describe, fitted, paper, recipe_named, tiny
from minigenie.settings import RecipeSettings

# Genie (arXiv:2402.15391), appendix F, the CoinRun case study; and sections 2.1 to 2.3.
PAPER = {
    "tokenizer.frame_size": [64, 64],
    "tokenizer.encoder.num_blocks": 8,
    "tokenizer.encoder.dim": 512,
    "tokenizer.encoder.num_heads": 8,
    "tokenizer.decoder.num_blocks": 8,
    "tokenizer.decoder.dim": 512,
    "tokenizer.decoder.num_heads": 8,
    "tokenizer.encoder.attend_time": True,
    "tokenizer.decoder.attend_time": True,
    "tokenizer.patch": 4,
    "tokenizer.quantizer.num_codes": 1024,
    "tokenizer.quantizer.code_dim": 32,
    "tokenizer.quantizer.codebook": "gradient",
    "tokenizer_fit.batch_size": 48,
    "tokenizer_fit.clip_frames": 16,
    "tokenizer_fit.steps": 300_000,
    "tokenizer_fit.optim.optimizer": "adamw",
    "tokenizer_fit.optim.lr": 3e-4,
    "tokenizer_fit.optim.decay": "constant",
    "tokenizer_fit.optim.warmup": 10_000,
    "tokenizer_fit.optim.betas": [0.9, 0.9],
    "tokenizer_fit.optim.weight_decay": 1e-4,
    "lam.encoder.num_blocks": 8,
    "lam.decoder.num_blocks": 8,
    "lam.encoder.dim": 512,
    "lam.decoder.dim": 512,
    "lam.encoder.num_heads": 8,
    "lam.decoder.num_heads": 8,
    "lam.input": "pixels",
    "lam.pairs": False,
    "lam.sigmoid": True,
    "lam.patch": 16,
    "lam.quantizer.num_codes": 6,
    "lam.quantizer.code_dim": 32,
    "dynamics.transformer.num_blocks": 12,
    "dynamics.transformer.dim": 512,
    "dynamics.transformer.num_heads": 8,
    "dynamics.context": "masked",
    "dynamics.motions": 0,
    "dynamics.min_mask": 0.5,
    "dynamics.group": 1,
    "joint": True,
    "dynamics_fit.batch_size": 36,
    "dynamics_fit.clip_frames": 16,
    "dynamics_fit.steps": 200_000,
    "dynamics_fit.optim.lr": 3e-5,
    "dynamics_fit.optim.final_lr": 0.1,
    "dynamics_fit.optim.decay": "cosine",
    "dynamics_fit.optim.warmup": 5_000,
    "dynamics_fit.optim.betas": [0.9, 0.9],
    "dynamics_fit.optim.weight_decay": 1e-4,
    "sampling.steps": 25,
    "sampling.temperature": 1.0,
}

# The "Mini-Genie" table for 16 GB: a value, or the range it has to lie in.
SEED = {
    "dynamics_fit.clip_frames": 16,
    "tokenizer.patch": 4,
    "tokenizer.quantizer.num_codes": 1024,
    "tokenizer.quantizer.code_dim": (32, 64),
    "lam.quantizer.num_codes": (6, 8),
    "lam.quantizer.code_dim": (32, 64),
    "dynamics.transformer.num_blocks": (8, 12),
    "dynamics.transformer.dim": 512,
    "dynamics.transformer.num_heads": 8,
    "dynamics_fit.optim.optimizer": "adamw",
    "dynamics_fit.optim.lr": 1e-4,
}


def value(recipe: Recipe, path: str):
    values = to_dict(recipe)
    for name in path.split("."):
        values = values[name]
    return values


@pytest.mark.parametrize("path", PAPER)
def test_paper_is_the_paper(path):
    assert value(paper(), path) == PAPER[path]


@pytest.mark.parametrize("path", SEED)
def test_coinrun_is_the_seeds_table(path):
    wanted, found = SEED[path], value(coinrun(), path)
    assert wanted[0] <= found <= wanted[1] if isinstance(wanted, tuple) else found == wanted


def test_every_row_can_be_configured():
    """Override by override, the paper's recipe can be made of another one."""
    changed = override(tiny(), [f"{path}={json.dumps(wanted)}" for path, wanted in PAPER.items()])
    assert {path: value(changed, path) for path in PAPER} == PAPER


def test_the_description_has_config_sizes_and_memory():
    text = describe(paper())
    assert json.loads(text[: text.rindex("}") + 1]) == to_dict(paper())
    for name, millions in (("tokenizer", 67.5), ("lam", 68.4), ("dynamics", 50.5)):
        line = next(line for line in text.splitlines() if line.startswith(name))
        assert float(re.search(r"([\d.]+) M parameters", line)[1]) == pytest.approx(millions, abs=1.5)
        assert "GiB" in line


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name):
    recipe = recipe_named(name)
    assert from_dict(Recipe, json.loads(json.dumps(to_dict(recipe)))) == recipe


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("dynamics.transformer.num_head=4", "does not exist; did you mean 'dynamics.transformer.num_heads'"),
        ("dynamics.transformer.num_heads=7", "does not split into 7 heads"),
        ("tokenizer.patch=7", "patch 7 does not divide the frame of 64x64"),
        ("lam.patch=48", "patch 48 does not divide"),
        ("lam.quantizer.num_codes=65", "65 actions are too many"),
        ("dynamics_fit.steps=many", "is 'many'; it should be int"),
        ("dynamics_fit.steps=0", "steps is 0"),
        ("lam.input=sound", "it should be 'pixels' or 'tokens'"),
        ("seed", "has no value; write it as FIELD=VALUE"),
        ("tokenizer=4", "does not exist"),
    ],
)
def test_overrides_that_make_no_sense(assignment, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        override(tiny(), [assignment])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "assignment",
    [
        "dynamics_fit.optim.warmup=-1",
        "dynamics_fit.optim.lr=NaN",
        "dynamics_fit.optim.betas=[2,2]",
        "dynamics_fit.optim.weight_decay=-1",
        "dynamics_fit.optim.clip=0",
        "lam.encoder.mlp_ratio=-1",
        "lam.quantizer.decay=7",
        "shares=[0,0,0]",
        "tokenizer.frame_size=[0,0]",
        "dynamics_fit.clip_frames=3",
        "dynamics.group=3",
        "seed=-1",
    ],
)
def test_numbers_that_make_no_sense(assignment):
    with pytest.raises(ValueError, match=r"\d|nan; it should be a finite number") as caught:
        override(tiny(), [assignment])
    assert "\n" not in str(caught.value)


def estimates(recipe: Recipe) -> list[float]:
    """GiB, of each line of the description that has some."""
    return [float(each) for each in re.findall(r"about ([\d.]+) GiB", describe(recipe))]


@pytest.mark.parametrize(("name", "most"), [("coinrun", 14), ("paper", 16), ("speedrun", 60), ("pocket", 40)])
def test_a_recipe_is_estimated_to_fit_its_gpu(name, most):
    assert max(estimates(recipe_named(name))) < most


def test_the_estimate_knows_what_is_computed_again_and_the_logits():
    fits = ("tokenizer_fit", "lam_fit", "dynamics_fit")
    endless = replace(coinrun(), ending=EndingConfig())
    kept, cheap, blocks = (
        estimates(override(endless, [f"{fit}.execution.recompute={how}" for fit in fits]))
        for how in ("nothing", "cheap", "blocks")
    )
    assert all(a > b > c for a, b, c in zip(kept, cheap, blocks, strict=True))
    more = override(endless, ["tokenizer.quantizer.num_codes=8192"])
    logits = 3 * 4 * 3 * 15 * 256 * (8192 - 1024) / 2**30
    assert estimates(more)[-1] - kept[-1] == pytest.approx(logits, abs=0.2)
    joint = estimates(paper())
    assert joint[-1] == pytest.approx(sum(joint[1:3]), abs=0.2)


def test_an_override_changes_one_field():
    changed = override(tiny(), ["dynamics.transformer.dim=96", "dynamics-fit.optim.lr=0.5"])
    expected = replace(tiny().dynamics, transformer=replace(tiny().dynamics.transformer, dim=96))
    assert changed.dynamics == expected
    assert changed.dynamics_fit.optim.lr == 0.5
    assert changed.lam == tiny().lam


@pytest.mark.parametrize(
    ("recipe", "settings", "reason"),
    [
        ("paper", ["dynamics.corrupt=0.2"], "dynamics.corrupt does nothing with dynamics.context=masked"),
        ("tiny", ["dynamics.min_mask=0.2"], "dynamics.min_mask does nothing with dynamics.context=clean"),
        ("tiny", ["lam.input=tokens", "lam.patch=8"], "lam.patch does nothing with lam.input=tokens"),
        ("tiny", ["ending.dim=0", "ending.lost=0", "ending_fit.steps=9"], "ending_fit.steps does nothing with ending."),
        ("paper", ["lam-fit.optim.lr=0.1"], "lam_fit.optim.lr does nothing with joint"),
    ],
)
def test_a_field_that_would_change_nothing_is_refused(recipe, settings, reason):
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}.*; leave it out$"):
        adjusted(RecipeSettings(recipe=recipe, set=tuple(settings)))
    adjusted(RecipeSettings(recipe=recipe, set=tuple(settings[:-1])))


def test_an_unknown_recipe():
    with pytest.raises(ValueError, match="choose one of tiny, laptop, coinrun, speedrun, pocket, paper"):
        recipe_named("huge")


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("size", [(96, 160), (128, 128), (90, 160), (256, 256), (100, 100), (32, 32)])
def test_a_recipe_fits_itself_to_other_frames(name, size):
    recipe = fitted(recipe_named(name), size)
    positions = recipe.tokenizer.num_patches // recipe.dynamics.group**2
    assert recipe.tokenizer.frame_size == size
    assert 48 <= positions <= 256 or size == (32, 32)
    assert recipe.tokenizer.num_patches <= 1024
    assert f"{positions} positions of dynamics" in describe(recipe)


def test_a_recipe_is_left_as_it_is_where_it_fits():
    assert fitted(paper(), (64, 64)) == paper()
    assert (fitted(tiny(), (128, 128)).tokenizer.patch, fitted(tiny(), (128, 128)).dynamics.group) == (8, 2)
    assert adjusted(RecipeSettings(set=("tokenizer.patch=16",)), (96, 160)).tokenizer.patch == 16


def test_frames_that_no_squares_fill():
    with pytest.raises(ValueError, match=r"61x67 do not split into squares.* multiples of 16$"):
        fitted(tiny(), (61, 67))
