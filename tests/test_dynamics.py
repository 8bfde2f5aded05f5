from dataclasses import replace

import pytest
import torch
from conftest import small_recipe
from torch.testing import assert_close

from minigenie.camera import PAST
from minigenie.dynamics import SHOWN, DynamicsConfig, Given, cosine_mask, select_hidden
from minigenie.nn.st_transformer import TimeCache


def dynamics(motions=0, **settings):
    recipe = small_recipe()
    model = replace(recipe, dynamics=replace(recipe.dynamics, motions=motions, **settings)).make_dynamics().eval()
    if model.camera is not None:
        model.camera.set_motions(torch.randn(motions, 2))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def clip():
    return {
        "tokens": torch.randint(32, (2, 5, 64)),
        "actions": torch.randint(8, (2, 4)),
        "motions": torch.randint(8, (2, 4)),
        "moved": torch.randint(32, (2, 4, 64)),
    }


@pytest.mark.parametrize("motions", [0, 8])
@pytest.mark.parametrize("group", [1, 2])
def test_the_cache_answers_as_the_naive_reference(clip, group, motions):
    model = dynamics(group=group, motions=motions)
    tokens, given = clip["tokens"], model.given(clip)
    masked = tokens.clone()
    masked[:, -1] = model.mask_id
    past = TimeCache(model.transformer, 2, 4)
    for i in range(4):
        model.commit(tokens[:, i], given.map(lambda each, i=i: each[:, i]), past)
    at_last = model.step(masked[:, -1], given.map(lambda each: each[:, -1]), past)
    assert_close(at_last, model.logits(masked, given)[:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("motions", [0, 8])
@pytest.mark.parametrize("group", [1, 2])
def test_two_streams_are_every_frame_as_it_will_be_imagined(clip, group, motions):
    """The training pass must equal, frame by frame, the naive clip: clean past, this frame masked."""
    model = dynamics(group=group, corrupt=0.0, motions=motions)
    tokens, given = clip["tokens"], model.given(clip)
    torch.manual_seed(2)
    hidden, targets, hide = model._clean_and_masked(tokens, given)
    torch.manual_seed(2)
    assert_close(hide, cosine_mask(tokens[:, 1:]))
    assert_close(targets, tokens[:, 1:])
    masked, at_once = targets.masked_fill(hide, model.mask_id), model.head(model._ungroup(hidden))
    for i in range(4):
        upto = torch.cat((tokens[:, : i + 1], masked[:, i : i + 1]), 1)
        naive = model.logits(upto, given.map(lambda each, i=i: each[:, : i + 2]))[:, -1]
        assert_close(at_once[:, i], naive, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("motions", [0, 8])
@pytest.mark.parametrize("what", ["actions", "motions", "moved"])
def test_what_leads_into_a_frame_reaches_it_and_no_earlier_one(clip, what, motions):
    model = dynamics(motions=motions)
    masked, other = clip["tokens"].clone(), clip[what].clone()
    masked[:, 3] = model.mask_id
    other[:, 2] = (other[:, 2] + 1) % 8
    logits = [model.logits(masked, model.given(batch)) for batch in (clip, clip | {what: other})]
    change = (logits[0] - logits[1]).abs()
    assert change[:, :3].max() == 0
    assert (change[:, 3].max() > 1e-4) == (what == "actions" or motions > 0)


def test_the_moved_frame_stands_only_where_a_token_is_hidden(clip):
    model, other = dynamics(motions=8), clip | {"moved": (clip["moved"] + 1) % 32}
    assert_close(*(model.logits(clip["tokens"], model.given(batch)) for batch in (clip, other)), rtol=0, atol=0)


def test_one_more_frame_is_given_as_if_it_had_been_there():
    known = Given(torch.randint(8, (2, 5)), torch.randint(8, (2, 5)), torch.randint(32, (2, 5, 64)))
    for whole in (known, Given(known.action)):
        joined = whole.map(lambda each: each[:, :-1]).then(whole.map(lambda each: each[:, -1]))
        assert [each is None for each in joined] == [each is None for each in whole]
        assert all(torch.equal(a, b) for a, b in zip(joined, whole, strict=True) if a is not None)


@pytest.mark.parametrize(("context", "motions"), [("clean", 0), ("clean", 8), ("masked", 0)])
def test_only_hidden_tokens_are_answered_for(clip, context, motions):
    model = dynamics(context=context, motions=motions).train()
    loss, metrics = model(clip)
    loss.backward()
    assert loss.isfinite()
    assert 0 <= float(metrics["accuracy"]) <= 1
    assert ("motion" in metrics) == (motions > 0)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_motions_need_a_clean_context():
    with pytest.raises(ValueError, match="^motions is 8; with context=masked it must be 0$"):
        DynamicsConfig(context="masked", motions=8)
    with pytest.raises(ValueError, match="^motions is -1; it must be 0 to 65535$"):
        DynamicsConfig(motions=-1)
    for config in ({"memory": 64}, {"motions": 8, "memory": -1}):
        with pytest.raises(
            ValueError, match=rf"^memory is {config['memory']}; it must be 0 to 1024 pixels, and 0 without"
        ):
            DynamicsConfig(**config)


def test_motions_are_learnt_from_clips_or_from_steps(clip):
    """A clip is as many steps as it has motions, each told from those before it."""
    model, camera = dynamics(motions=8), dynamics(motions=8).camera
    steps = {"tokens": [], "motions": [], "actions": []}
    for row in range(2):
        for i in range(4):
            steps["tokens"].append(clip["tokens"][row, i])
            for name, unknown in (("motions", camera.unknown), ("actions", camera.no_action)):
                before = torch.full((PAST - i,), unknown)
                steps[name].append(torch.cat((before, clip[name][row, : i + 1])))
    stacked = {f"step_{name}": torch.stack(rows) for name, rows in steps.items()}
    of_clips, of_steps = (float(model(batch)[1]["motion"]) for batch in (clip, clip | stacked))
    assert_close(of_clips, of_steps)
    others = stacked | {"step_motions": (stacked["step_motions"] + 1) % 8}
    assert abs(float(model(clip | others)[1]["motion"]) - of_clips) > 1e-3


def test_mask_rates_follow_the_cosine():
    rate = cosine_mask(torch.zeros(400, 5, 64, dtype=torch.long)).float().mean(-1)
    assert rate.min() > 0
    assert abs(float(rate.mean()) - 2 / torch.pi) < 0.02


def test_it_learns_that_the_action_decides():
    """Action a turns every token into a: a model that heeds its action is always right."""
    recipe = small_recipe()
    model = replace(recipe, dynamics=replace(recipe.dynamics, corrupt=0.0, motions=0)).make_dynamics().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        actions = torch.randint(8, (8, 3))
        tokens = torch.nn.functional.pad(actions, (1, 0))[..., None].expand(-1, -1, 64)
        loss, metrics = model({"tokens": tokens, "actions": actions})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert metrics["accuracy"] > 0.95


@pytest.mark.parametrize(("context", "motions"), [("clean", 0), ("clean", 8), ("masked", 0)])
def test_control_is_what_the_right_actions_are_worth_and_no_draw_of_luck(clip, context, motions):
    model = dynamics(context=context, motions=motions)
    before = torch.get_rng_state()
    assert float(model.control(clip)) == float(model.control(clip)) != 0
    assert torch.equal(torch.get_rng_state(), before)
    for name, parameter in model.named_parameters():
        if "embed_action" in name:
            torch.nn.init.zeros_(parameter)
    assert float(model.control(clip)) == 0


def test_codes_that_look_alike_start_alike():
    model = dynamics()
    codebook = torch.randn(32, 8)
    codebook[1] = codebook[0]
    model.init_from_codebook(codebook)
    assert_close(model.embed_token.weight[0], model.embed_token.weight[1])
    assert (model.embed_token.weight[0] - model.embed_token.weight[2]).abs().max() > 0.1


def test_hidden_tokens_count_alike_in_a_fixed_number_of_positions():
    logits, targets, hide = torch.randn(2, 3, 5, 7), torch.randint(7, (2, 3, 5)), torch.rand(2, 3, 5) < 0.4
    (some, wanted), (all_of_them, marked) = (select_hidden(logits, targets, hide, static) for static in (False, True))
    assert (len(some), len(all_of_them)) == (int(hide.sum()), hide.numel())
    assert_close(
        torch.nn.functional.cross_entropy(all_of_them, marked, ignore_index=SHOWN),
        torch.nn.functional.cross_entropy(some, wanted),
    )
