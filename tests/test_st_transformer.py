import pytest
import torch
from torch.testing import assert_close

from minigenie.nn.st_transformer import STConfig, STTransformer, TimeCache, rope_angles, rotate


def awake(model):
    """Blocks start as the identity; give them something to say."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture
def transformer():
    return awake(STTransformer(STConfig(num_blocks=2, dim=32, num_heads=4), (1, 5)))


def test_time_is_causal(transformer):
    x = torch.randn(2, 6, 5, 32)
    edited = x.clone()
    edited[:, 3:] = torch.randn_like(edited[:, 3:])
    before, after = transformer(x), transformer(edited)
    assert_close(before[:, :3], after[:, :3])
    assert (before[:, 3:] - after[:, 3:]).abs().max() > 0.01


def test_a_patch_hears_of_all_others_in_its_frame_and_of_earlier_frames(transformer):
    x = torch.randn(1, 3, 5, 32)
    edited = x.clone()
    edited[:, 0, 0] = torch.randn(32)
    change = (transformer(x) - transformer(edited)).abs().amax(-1)[0]
    assert (change > 1e-6).all()


def test_without_time_every_frame_stands_alone():
    model = awake(STTransformer(STConfig(num_blocks=2, dim=32, num_heads=4, attend_time=False), (1, 5)))
    x = torch.randn(1, 4, 5, 32)
    assert_close(model(x)[:, 2:3], model(x[:, 2:3]))


def test_blocks_start_as_the_identity():
    model = STTransformer(STConfig(num_blocks=3, dim=32, num_heads=4), (1, 5))
    x = torch.randn(1, 2, 5, 32)
    assert_close(model(x), model.norm(x))


def test_frame_by_frame_through_the_cache_is_the_clip_at_once(transformer):
    x = torch.randn(2, 5, 5, 32)
    cache = TimeCache(2)
    steps = [transformer(x[:, i : i + 1], torch.tensor([i]), cache=cache, commit=True) for i in range(5)]
    assert_close(torch.cat(steps, 1), transformer(x), rtol=1e-5, atol=1e-5)


def test_looking_does_not_commit(transformer):
    x = torch.randn(1, 2, 5, 32)
    cache = TimeCache(2)
    transformer(x[:, :1], torch.tensor([0]), cache=cache, commit=True)
    looks = [transformer(x[:, 1:], torch.tensor([1]), cache=cache) for _ in range(2)]
    assert_close(looks[0], looks[1])


def test_only_distance_in_time_matters(transformer):
    x = torch.randn(1, 4, 5, 32)
    early, late = (transformer(x, torch.arange(4) + start) for start in (0, 1000))
    assert_close(early, late, rtol=1e-3, atol=1e-3)


def test_rotation_keeps_length_and_depends_on_difference():
    q, k = torch.randn(2, 1, 8)
    angles = rope_angles(torch.tensor([[3], [7], [13], [17]]), 8, 100.0)
    dots = [rotate(q, angles[i : i + 1]) @ rotate(k, angles[i + 1 : i + 2]).T for i in (0, 2)]
    assert_close(dots[0], dots[1])
    assert_close(rotate(q, angles[:1]).norm(), q.norm())


@pytest.mark.parametrize("sizes", [{"dim": 30, "num_heads": 4}, {"dim": 32, "num_heads": 0}, {"num_blocks": -1}])
def test_sizes_that_cannot_be(sizes):
    with pytest.raises(ValueError, match="dim|num_heads|num_blocks"):
        STConfig(**sizes)
