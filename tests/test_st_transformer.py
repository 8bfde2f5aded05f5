import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from minigenie.nn import st_transformer
from minigenie.nn.st_transformer import Attention, STConfig, STTransformer, TimeCache, attention, rope, rotate


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


def through(transformer, x, cache):
    """Frames [b t n d], one after the other."""
    hidden = []
    for frame in x.unbind(1):
        hidden.append(transformer.step(frame, cache))
        cache.commit()
    return torch.stack(hidden, 1)


def test_frame_by_frame_through_the_cache_is_the_clip_at_once(transformer):
    x = torch.randn(2, 6, 5, 32)
    assert_close(through(transformer, x, TimeCache(transformer, 2, 5)), transformer(x), rtol=1e-5, atol=1e-5)


def test_looking_does_not_commit(transformer):
    x, y = torch.randn(2, 1, 5, 32), torch.randn(1, 3, 5, 32)
    cache = TimeCache(transformer, 1, 4)
    through(transformer, y, cache)
    before, aside, after = (transformer.step(frame, cache) for frame in (x[0], x[1], x[0]))
    assert_close(before, after)
    assert (before - aside).abs().max() > 0.01


def test_one_block_remembers_as_many_frames_as_it_should():
    """With one block nothing of older frames lives on in the keys of newer ones: the cache is a sliding window."""
    model = awake(STTransformer(STConfig(num_blocks=1, dim=32, num_heads=4), (1, 5)))
    x = torch.randn(1, 12, 5, 32)
    at_last = through(model, x, TimeCache(model, 1, 3))[:, -1]
    assert_close(at_last, model(x[:, -4:])[:, -1], rtol=1e-5, atol=1e-5)


def test_worlds_side_by_side_begin_anew_on_their_own(transformer):
    x, y = torch.randn(3, 4, 5, 32), torch.randn(1, 2, 5, 32)
    cache, other = TimeCache(transformer, 3, 4), TimeCache(transformer, 1, 4, slot=2)
    through(transformer, x[:, :3], cache)
    through(transformer, y[:, :1], other)
    cache.put(torch.tensor([1]), other)
    after = transformer.step(torch.cat((x[:1, 3], y[:, 1], x[2:, 3])), cache)
    assert_close(after[[0, 2]], transformer(x)[[0, 2], 3], rtol=1e-5, atol=1e-5)
    assert_close(after[1], transformer(y)[0, 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("recompute", "runs"), [("nothing", (1, 1, 1)), ("cheap", (1, 2, 1)), ("blocks", (2, 2, 1))])
def test_what_is_computed_again_changes_no_gradient(transformer, recompute, runs, monkeypatch):
    """runs: of the first block's first product, its GELU and its last product."""
    x, back = torch.randn(2, 3, 5, 32), torch.randn(2, 3, 5, 32)
    expected = torch.autograd.grad(transformer(x), list(transformer.parameters()), back)
    transformer.set_recompute(recompute)
    ran = []
    for part in transformer.blocks[0].mlp:
        part.register_forward_hook(lambda part, inputs, output: ran.append(part))
    grads = torch.autograd.grad(transformer(x), list(transformer.parameters()), back)
    assert tuple(ran.count(part) for part in transformer.blocks[0].mlp) == runs
    for grad, same in zip(grads, expected, strict=True):
        assert torch.equal(grad, same)
    monkeypatch.setattr(st_transformer, "recomputed", None)  # without gradients nothing is
    with torch.no_grad():
        transformer(x)


ONE_GRAPH = """
import torch
from minigenie.nn.st_transformer import STConfig, STTransformer, TimeCache

graphs = []
def count(graph, inputs):
    graphs.append(graph)
    return graph.forward

def step(frame):
    hidden = transformer.step(frame, cache)
    cache.commit()
    return hidden

def addresses():
    return [tensor.data_ptr() for tensor in (*cache.keys, *cache.values, cache.unseen, cache.slot)]

transformer = STTransformer(STConfig(num_blocks=2, dim=32, num_heads=4), (1, 5))
cache = TimeCache(transformer, 2, 3)
before = addresses()
with torch.no_grad():
    compiled = torch.compile(step, backend=count, fullgraph=True)
    [compiled(frame) for frame in torch.randn(9, 2, 5, 32)]
assert len(graphs) == 1, len(graphs)
assert addresses() == before
"""


ONE_GRAPH_OF_TRAINING = """
import torch
from minigenie.nn.st_transformer import STConfig, STTransformer

x = torch.randn(2, 3, 5, 32)
for recompute in ("nothing", "cheap", "blocks"):
    plain = STTransformer(STConfig(num_blocks=2, dim=32, num_heads=4), (1, 5))
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    plain.set_recompute(recompute)
    compiled = torch.compile(plain, backend="aot_eager", fullgraph=True)
    for enabled in (False, True):
        grads = []
        for model in (plain, compiled):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                y = model(x)
            grads.append(torch.autograd.grad(y.float().square().sum(), list(plain.parameters())))
        for mine, its in zip(*grads):
            torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-3)
"""


def test_training_is_one_graph_in_any_precision_whatever_is_computed_again():
    subprocess.run([sys.executable, "-c", ONE_GRAPH_OF_TRAINING], check=True)


def test_a_step_is_one_graph_over_tensors_that_stay_in_place():
    """So that it can be compiled, or captured in a CUDA graph, once for all frames. In a process of its own: the type
    checks of these tests are no code to compile."""
    subprocess.run([sys.executable, "-c", ONE_GRAPH], check=True)


def test_only_distance_in_time_matters(transformer):
    x = torch.randn(1, 4, 5, 32)
    early, late = (transformer(x, torch.arange(4) + start) for start in (0, 1000))
    assert_close(early, late, rtol=1e-3, atol=1e-3)


def test_rotation_keeps_length_and_depends_on_difference():
    q, k = torch.randn(2, 1, 8)
    turn = rope(torch.tensor([[3], [7], [13], [17]]), 8, 100.0)
    dots = [rotate(q, turn[:, i : i + 1]) @ rotate(k, turn[:, i + 1 : i + 2]).T for i in (0, 2)]
    assert_close(dots[0], dots[1])
    assert_close(rotate(q, turn[:, :1]).norm(), q.norm())


@pytest.mark.parametrize("sizes", [{"dim": 30, "num_heads": 4}, {"dim": 32, "num_heads": 0}, {"num_blocks": -1}])
def test_sizes_that_cannot_be(sizes):
    with pytest.raises(ValueError, match="dim|num_heads|num_blocks"):
        STConfig(**sizes)


@pytest.mark.parametrize("axis", [1, 2])
def test_attention_is_the_textbook_s(axis):
    ours, x = awake(Attention(32, 4)), torch.randn(2, 5, 3, 32)
    turn = rope(torch.arange(x.shape[axis])[:, None], 8, 100.0)
    q, k, v = (each.movedim(axis, -2) for each in ours.qkv(x).view(2, 5, 3, 3, 4, 8).unbind(3))
    q, k = rotate(ours.norm_q(q), turn), rotate(ours.norm_k(k), turn)
    taken = torch.einsum("bghqk,bghkd->bghqd", torch.einsum("bghqd,bghkd->bghqk", q, k).div(8**0.5).softmax(-1), v)
    textbook = ours.out(taken.movedim(-2, axis).flatten(-2))
    back = torch.randn_like(textbook)
    grads = [torch.autograd.grad(y, list(ours.parameters()), back) for y in (ours(x, axis, turn), textbook)]
    assert_close(ours(x, axis, turn), textbook)
    for mine, expected in zip(*grads, strict=True):
        assert_close(mine, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("s", [5, st_transformer.SHORT + 1])
@pytest.mark.parametrize("seen", ["all", "causal", "mask"])
@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_attention_in_products_is_the_library_s(s, seen, dtype, off):
    """Both kernels, whichever is taken at this size; bfloat16 within three steps of its own."""
    q, k, v, back = torch.randn(4, 2, 3, 2, s, 8)
    mask = torch.zeros(s, s).masked_fill(torch.rand(s, s).fill_diagonal_(1) < 0.3, -torch.inf)
    options = {"all": {}, "causal": {"causal": True}, "mask": {"mask": mask.to(dtype)}}[seen]
    leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    ours = attention(*leaves, **options)
    exact = [x.detach().float().requires_grad_() for x in leaves]
    flat = (x.flatten(0, 1) for x in exact)
    library = torch.nn.functional.scaled_dot_product_attention(
        *flat, attn_mask=mask if seen == "mask" else None, is_causal=seen == "causal"
    ).view(q.shape)
    assert_close(ours.float(), library, rtol=off, atol=off)
    for mine, its in zip(
        *(torch.autograd.grad(y, x, back.to(y)) for y, x in ((ours, leaves), (library, exact))), strict=True
    ):
        assert_close(mine.float(), its, rtol=off, atol=off)


@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_low_precision_stays_near_float32(transformer, how):
    x = torch.randn(2, 6, 5, 32)
    exact = transformer(x)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        low = (transformer if how == "autocast" else transformer.bfloat16())(x)
    assert low.dtype == torch.float32
    assert 1e-4 < (low - exact).norm() / exact.norm() < 0.05


def test_a_cache_in_low_precision_is_near_the_clip_at_once(transformer):
    x = torch.randn(2, 6, 5, 32)
    exact = transformer(x)
    low = through(transformer.bfloat16(), x, TimeCache(transformer, 2, 5))
    assert (low - exact).norm() / exact.norm() < 0.05
