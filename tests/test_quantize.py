import torch
from torch.testing import assert_close

from minigenie.nn.quantize import QuantizerConfig, VectorQuantizer


def quantizer(**settings):
    return VectorQuantizer(QuantizerConfig(**({"num_codes": 16, "code_dim": 4} | settings)))


def test_the_nearest_code_is_chosen():
    q = quantizer()
    vectors = torch.randn(50, 4)
    assert_close(q.nearest(vectors), torch.cdist(vectors, q.codebook).argmin(1))


def test_the_gradient_goes_straight_through():
    q = quantizer(commitment=0.0)
    vectors = torch.randn(8, 4, requires_grad=True)
    weight = torch.randn(8, 4)
    (q(vectors).vectors * weight).sum().backward()
    assert_close(vectors.grad, weight)


def test_values_are_the_codes():
    q = quantizer().eval()
    out = q(torch.randn(8, 4))
    assert_close(out.vectors, q.lookup(out.codes))


def test_evaluating_changes_nothing():
    q = quantizer().eval()
    before = {name: value.clone() for name, value in q.state_dict().items()}
    q(torch.randn(64, 4))
    assert_close(q.state_dict(), before)


def test_running_means_find_the_clusters():
    q = quantizer(num_codes=16, code_dim=2)
    centres = torch.tensor([[5.0, 5.0], [-5.0, 5.0], [5.0, -5.0], [-5.0, -5.0]])
    for _ in range(100):
        q(centres[torch.randint(4, (256,))] + 0.1 * torch.randn(256, 2))
        q.update_codebook()
    assert torch.cdist(centres, q.codebook).amin(1).max() < 0.2


def test_a_codebook_far_away_comes_alive():
    q = quantizer(num_codes=8, code_dim=2)
    q.ready = True
    q.codebook += 100
    for _ in range(200):
        codes = q(torch.randn(256, 2)).codes
        q.update_codebook()
    assert len(codes.unique()) == 8


def test_warmup_is_continuous_and_then_quantizes():
    q = quantizer(warmup=0.5, noise=0.0)
    vectors = torch.randn(32, 4)
    assert_close(q(vectors, progress=0.4).vectors, vectors)
    q.update_codebook()
    assert not q.placed
    assert q.usage() == {}
    assert_close(q(vectors, progress=0.6).vectors, vectors)
    q.update_codebook()
    assert q.placed
    assert set(q.usage()) == {"codes_alive", "perplexity"}
    out = q(vectors, progress=0.7)
    assert_close(out.vectors, q.lookup(out.codes))


def test_a_step_of_many_parts_settles_as_one_of_all():
    whole, parts = quantizer(warmup=0.0), quantizer(warmup=0.0)
    parts.load_state_dict(whole.state_dict())
    for vectors in torch.randn(3, 64, 4):
        torch.manual_seed(0)
        whole(vectors)
        whole.update_codebook()
        torch.manual_seed(0)
        for part in vectors.split(16) if whole.share.std() else [vectors]:
            parts(part)
        parts.update_codebook()
        assert_close(parts.codebook, whole.codebook)
        assert_close(parts.share, whole.share)


def test_the_gradient_codebook_learns_by_its_loss():
    q = quantizer(codebook="gradient")
    q.ready = True
    q(torch.randn(32, 4)).loss.backward()
    assert q.codebook.grad is not None
    assert q.codebook.grad.abs().sum() > 0
