from dataclasses import replace

import pytest
import torch
from conftest import small_recipe
from torch.testing import assert_close

from minigenie.nn.patches import patchify, to_float, to_uint8, unpatchify
from minigenie.tokenizer import TokenizerConfig


@pytest.fixture
def tokenizer():
    model = small_recipe().make_tokenizer().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_patches_and_back():
    frames = torch.rand(2, 3, 16, 24, 3)
    assert_close(unpatchify(patchify(frames, 4), 4, 16), frames)
    assert_close(patchify(frames, 4)[0, 0, 1].view(4, 4, 3), frames[0, 0, :4, 4:8])


def test_every_byte_survives_the_conversion():
    every = torch.arange(256, dtype=torch.uint8)
    assert_close(to_uint8(to_float(every)), every)


def test_encoding_and_decoding_are_causal(tokenizer):
    frames = torch.rand(1, 5, 64, 64, 3)
    assert_close(tokenizer.encode(frames)[:, :3], tokenizer.encode(frames[:, :3]))
    tokens = torch.randint(32, (1, 5, 64))
    edited = tokens.clone()
    edited[:, 3:] = 0
    assert_close(tokenizer.decode(tokens)[:, :3], tokenizer.decode(edited)[:, :3])


def test_without_an_encoder_network_a_token_depends_on_its_patch_alone():
    config = small_recipe().tokenizer
    model = replace(small_recipe(), tokenizer=replace(config, encoder=replace(config.encoder, num_blocks=0)))
    tokenizer = model.make_tokenizer().eval()
    tokenizer.encoder_place.data.zero_()
    frames = torch.rand(1, 1, 64, 64, 3)
    edited = frames.clone()
    edited[:, :, 8:] = 0.5
    assert_close(tokenizer.encode(frames)[..., :8], tokenizer.encode(edited)[..., :8])


def test_it_learns_a_picture():
    model = small_recipe().make_tokenizer().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    batch = {"frames": torch.randint(256, (2, 1, 8, 8, 3), dtype=torch.uint8).repeat(1, 2, 8, 8, 1)}
    psnr = []
    for step in range(60):
        loss, metrics = model(batch, step / 60)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        psnr.append(float(metrics["psnr"]))
    assert psnr[-1] > psnr[0] + 5


def test_a_patch_that_does_not_fit():
    with pytest.raises(ValueError, match="patch 7 does not divide the frame of 64x64"):
        TokenizerConfig(patch=7)
