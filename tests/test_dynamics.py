from dataclasses import replace

import pytest
import torch
from conftest import small_recipe
from torch.testing import assert_close

from minigenie.dynamics import SHOWN, cosine_mask, counted, two_streams
from minigenie.nn.st_transformer import TimeCache


def dynamics(**settings):
    recipe = small_recipe()
    model = replace(recipe, dynamics=replace(recipe.dynamics, **settings)).make_dynamics().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def clip():
    return torch.randint(32, (2, 5, 64)), torch.randint(8, (2, 4))


@pytest.mark.parametrize("group", [1, 2])
def test_the_cache_answers_as_the_naive_reference(clip, group):
    tokens, actions = clip
    model = dynamics(group=group)
    leading_in = model._leading_in(actions)
    masked = tokens.clone()
    masked[:, -1] = model.mask_id
    past = TimeCache(model.transformer, 2, 4)
    for i in range(4):
        model.commit(tokens[:, i], leading_in[:, i], past)
    at_last = model.step(masked[:, -1], leading_in[:, -1], past)
    assert_close(at_last, model.logits(masked, leading_in)[:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("group", [1, 2])
def test_two_streams_are_every_frame_as_it_will_be_imagined(clip, group):
    """The training pass must equal, frame by frame, the naive clip: clean past, this frame masked."""
    tokens, actions = clip
    model = dynamics(group=group, corrupt=0.0)
    leading_in = model._leading_in(actions)
    hide = cosine_mask(tokens[:, 1:])
    masked = tokens[:, 1:].masked_fill(hide, model.mask_id)
    entered = model._enter(
        torch.cat((tokens[:, :-1], masked), 1), torch.cat((leading_in[:, :-1], leading_in[:, 1:]), 1)
    )
    at_once = model.head(model._leave(model.transformer(entered, *two_streams(4, tokens.device))))[:, 4:]
    for i in range(4):
        naive = model.logits(torch.cat((tokens[:, : i + 1], masked[:, i : i + 1]), 1), leading_in[:, : i + 2])[:, -1]
        assert_close(at_once[:, i], naive, rtol=1e-4, atol=1e-5)


def test_an_action_reaches_the_frame_it_leads_into_and_no_earlier_one(clip):
    tokens, actions = clip
    model = dynamics()
    other = actions.clone()
    other[:, 2] = (other[:, 2] + 1) % 8
    change = (model.logits(tokens, model._leading_in(actions)) - model.logits(tokens, model._leading_in(other))).abs()
    assert change[:, :3].max() == 0
    assert change[:, 3].max() > 1e-4


@pytest.mark.parametrize("context", ["clean", "masked"])
def test_only_hidden_tokens_are_answered_for(clip, context):
    model = dynamics(context=context).train()
    loss, metrics = model({"tokens": clip[0], "actions": clip[1]})
    loss.backward()
    assert loss.isfinite()
    assert 0 <= float(metrics["accuracy"]) <= 1


def test_mask_rates_follow_the_cosine():
    rate = cosine_mask(torch.zeros(400, 5, 64, dtype=torch.long)).float().mean(-1)
    assert rate.min() > 0
    assert abs(float(rate.mean()) - 2 / torch.pi) < 0.02


def test_it_learns_that_the_action_decides():
    """Action a turns every token into a: a model that heeds its action is always right."""
    recipe = small_recipe()
    model = replace(recipe, dynamics=replace(recipe.dynamics, corrupt=0.0)).make_dynamics().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        actions = torch.randint(8, (8, 3))
        tokens = torch.nn.functional.pad(actions, (1, 0))[..., None].expand(-1, -1, 64)
        loss, metrics = model({"tokens": tokens, "actions": actions})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert metrics["accuracy"] > 0.95


@pytest.mark.parametrize("context", ["clean", "masked"])
def test_control_is_what_the_right_actions_are_worth_and_no_draw_of_luck(clip, context):
    model = dynamics(context=context)
    batch = {"tokens": clip[0], "actions": clip[1]}
    before = torch.get_rng_state()
    assert float(model.control(batch)) == float(model.control(batch)) != 0
    assert torch.equal(torch.get_rng_state(), before)
    torch.nn.init.zeros_(model.embed_action.weight)
    assert float(model.control(batch)) == 0


def test_codes_that_look_alike_start_alike():
    model = dynamics()
    codebook = torch.randn(32, 8)
    codebook[1] = codebook[0]
    model.start_from(codebook)
    assert_close(model.embed_token.weight[0], model.embed_token.weight[1])
    assert (model.embed_token.weight[0] - model.embed_token.weight[2]).abs().max() > 0.1


def test_hidden_tokens_count_alike_in_a_fixed_number_of_positions():
    logits, targets, hide = torch.randn(2, 3, 5, 7), torch.randint(7, (2, 3, 5)), torch.rand(2, 3, 5) < 0.4
    (some, wanted), (all_of_them, marked) = (counted(logits, targets, hide, static) for static in (False, True))
    assert (len(some), len(all_of_them)) == (int(hide.sum()), hide.numel())
    assert_close(
        torch.nn.functional.cross_entropy(all_of_them, marked, ignore_index=SHOWN),
        torch.nn.functional.cross_entropy(some, wanted),
    )
