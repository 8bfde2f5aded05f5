import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import small_recipe
from PIL import Image
from torch.testing import assert_close

from minigenie import World
from minigenie.camera import PAST
from minigenie.maskgit import SamplingConfig
from minigenie.nn.motion import warp
from minigenie.nn.patches import to_float
from minigenie.nn.st_transformer import TimeCache
from minigenie.runtime import can_compile
from minigenie.world import read_prompt

ACTIONS = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])


def small_config(motions, memory=0):
    recipe = small_recipe()
    return replace(recipe, dynamics=replace(recipe.dynamics, motions=motions, memory=memory))


@pytest.fixture(scope="module", params=[(0, 0), (8, 0), (8, 16)], ids=["no-camera", "camera", "memory"])
def world(request):
    return opinionated(small_config(*request.param))


def opinionated(config):
    """A world, untrained."""
    torch.manual_seed(1)
    made = World(config, config.make_tokenizer(), config.make_lam(), config.make_dynamics(), "cpu")
    if made.dynamics.camera is not None:
        made.dynamics.camera.set_motions(4 * torch.randn(config.dynamics.motions, 2))
    for module in (made.tokenizer, made.lam, made.dynamics):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return made


@pytest.fixture
def video():
    return torch.randint(256, (2, 4, 64, 64, 3), dtype=torch.uint8)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_cached_rollout_is_the_naive_one(world, video, temperature):
    """Up to the length the world remembers, the cache is exact: 4 true frames and 3 imagined ones of 7."""
    actions, world = torch.randint(8, (2, 4)), world.fresh_copy(replace(world.config.sampling, temperature=temperature))
    cached, naive = (world.rollout(video, actions, seed=3, cached=cached) for cached in (True, False))
    assert_close(cached, naive, atol=1, rtol=0)
    assert cached.shape == (2, 4, 64, 64, 3)
    assert cached.dtype == torch.uint8


@pytest.mark.parametrize("frames", [1, 4])
def test_the_motion_told_is_the_motion_made(video, frames, monkeypatch):
    """With a camera every frame is given its action, a motion told for it, and the frame at hand moved by that."""
    made, seen = opinionated(small_config(8)), []
    camera, tokenizer, fill = made.dynamics.camera, made.tokenizer, made.dynamics.fill
    monkeypatch.setattr(made.dynamics, "fill", lambda given, *rest: seen.append(given) or fill(given, *rest))
    monkeypatch.setattr(camera, "likeliest_motion", lambda *rest: torch.randint(8, (2,)))
    made.reset(video[:, :frames])
    for column in ACTIONS.unbind(1):
        before = made._past.frame.clone()
        made.step(column)
        assert (seen[-1].action == column).all()
        shifted = warp(before, camera.motions[seen[-1].motion])[0]
        assert (seen[-1].moved == tokenizer.encode(shifted[:, None])[:, 0]).all()
    assert len(torch.stack([given.motion for given in seen]).unique()) > 1


def test_what_a_world_remembers_is_what_training_shows_it(video, monkeypatch):
    """A frame that it has imagined, moved, with what it saw before: as `Camera.move` has it of the dataset's clips."""
    made, seen, frames = opinionated(small_config(8, memory=16)), [], [to_float(video[:, 0])]
    camera, tokenizer, fill = made.dynamics.camera, made.tokenizer, made.dynamics.fill
    monkeypatch.setattr(made.dynamics, "fill", lambda given, *rest: seen.append(given) or fill(given, *rest))
    monkeypatch.setattr(camera, "likeliest_motion", lambda *rest: torch.randint(8, (2,)))
    made = made.fresh_copy(SamplingConfig(steps=1, temperature=1.0))
    made.reset(video[:, :1])
    for column in torch.cat((ACTIONS, ACTIONS), dim=1).unbind(1):
        made.step(column)
        frames.append(made._past.frame.clone())
    codes = torch.stack([given.motion for given in seen], dim=1)
    moved = camera.move(torch.stack(frames[:-1], dim=1), codes, camera.motions[codes])
    forgetful = warp(torch.stack(frames[:-1], dim=1).flatten(0, 1), camera.motions[codes].flatten(0, 1))[0]
    assert (moved.flatten(0, 1) - forgetful).abs().amax((1, 2, 3)).gt(0.1).any()
    for step in range(1, len(seen)):
        assert (seen[step].moved == tokenizer.encode(moved[:, step, None])[:, 0]).float().mean() > 0.99


@pytest.mark.parametrize("frames", [1, 4])
def test_a_motion_is_told_from_all_that_led_to_it(video, frames, monkeypatch):
    """The tokens of the frame at hand, and the motions and actions so far, the newest last."""
    made, seen, told = opinionated(small_config(8)), [], []
    camera, sample = made.dynamics.camera, made._sample
    likeliest, unknown, no_action = camera.likeliest_motion, camera.unknown, camera.no_action
    monkeypatch.setattr(made, "_sample", lambda *rest: told.append(sample(*rest)) or told[-1])
    monkeypatch.setattr(
        camera,
        "likeliest_motion",
        lambda past, *rest: seen.append([each.clone() for each in past] + [likeliest(past, *rest)]) or seen[-1][-1],
    )
    made.reset(video[:, :frames])
    known = made._look_at(video[:, :frames], made.tokenizer.encode(to_float(video[:, :frames])))[0]
    motions, actions = (
        torch.cat((torch.full((2, PAST), none), each[:, 1:]), 1)
        for none, each in zip((unknown, no_action), (known.motion, known.action), strict=True)
    )
    for i, column in enumerate(ACTIONS.unbind(1)):
        made.step(column)
        assert i == 0 or (seen[i][0] == told[i - 1].tokens).all()
        assert (seen[i][1] == motions[:, -PAST:]).all()
        assert (seen[i][2] == actions[:, -PAST:]).all()
        motions, actions = torch.cat((motions, seen[i][3][:, None]), 1), torch.cat((actions, column[:, None]), 1)


def test_nobody_is_drawn_into_a_wall(video, monkeypatch):
    """At any temperature and seed the camera goes where it goes likeliest: only tokens are left to chance."""
    made, seen = opinionated(small_config(8)), []
    fill = made.dynamics.fill
    monkeypatch.setattr(made.dynamics, "fill", lambda given, *rest: seen.append(given.motion) or fill(given, *rest))
    made = made.fresh_copy(replace(made.config.sampling, temperature=5.0))
    frames = []
    for seed in range(4):
        made.reset(video, seed)
        frames.append(made.step(ACTIONS[:, 0]))
    motions = torch.stack(seen).view(4, -1, 2)
    assert (motions == motions[0]).all()
    assert any((frame != frames[0]).any() for frame in frames)


def test_of_true_frames_the_camera_is_seen():
    """The first frame's motion nobody knows; the others are the nearest of those that the world has."""
    made = opinionated(small_config(3))
    made.dynamics.camera.set_motions(torch.tensor([[0.0, 0.0], [0.0, 4.0], [-4.0, 0.0]]))
    wide = torch.nn.functional.interpolate(torch.rand(1, 3, 14, 14), size=(84, 84), mode="bicubic").clamp(0, 1)
    picture = (255 * wide[0]).byte().movedim(0, -1)
    corners = [(8, 8), (8, 8), (8, 4), (12, 4)]  # content goes right, then up, as the window goes left and down
    video = torch.stack([picture[y : y + 64, x : x + 64] for y, x in corners])[None]
    given = made._look_at(video, made.tokenizer.encode(to_float(video)))[0]
    assert given.motion.tolist() == [[3, 0, 1, 2]]


def test_the_same_seed_imagines_the_same(world, video):
    world, actions = world.fresh_copy(replace(world.config.sampling, temperature=1.0)), torch.randint(8, (2, 3))
    assert_close(world.rollout(video, actions, seed=5), world.rollout(video, actions, seed=5))
    assert (world.rollout(video, actions, seed=5) != world.rollout(video, actions, seed=6)).any()


def test_actions_change_the_frame(world, video):
    one, other = (world.rollout(video, torch.full((2, 2), action), seed=0) for action in (0, 5))
    assert (one != other).any()


@pytest.mark.parametrize("motions", [0, 8])
def test_all_three_caches_are_exact(video, motions):
    """With attention along time in every stack: tokens the same, pixels to 1e-5, true frames or imagined."""
    recipe = small_config(motions)
    awake = replace(recipe.dynamics.transformer, num_blocks=2, attend_time=True)
    tokenizer = replace(recipe.tokenizer, encoder=awake, decoder=awake)
    config = replace(recipe, tokenizer=tokenizer, dynamics=replace(recipe.dynamics, transformer=awake))
    made = opinionated(config)
    for temperature in (1.0, 0.0):
        world = made.fresh_copy(replace(config.sampling, temperature=temperature))
        cached, naive = (world.rollout(video, ACTIONS, seed=2, cached=cached) for cached in (True, False))
        assert_close(cached, naive, atol=1, rtol=0)  # uint8, where 1e-5 may round the other way
    tokens = made.tokenizer.encode(to_float(video))
    past = TimeCache(made.tokenizer.encoder, 2, 3), TimeCache(made.tokenizer.decoder, 2, 3)
    with torch.no_grad():
        again = torch.stack([made.tokenizer.encode_next(frame, past[0]) for frame in to_float(video).unbind(1)], 1)
        frames = torch.stack([made.tokenizer.decode_next(each, past[1]) for each in tokens.unbind(1)], 1)
    assert (tokens == again).all()
    assert_close(frames, made.tokenizer.decode(tokens), atol=1e-5, rtol=0)


def test_it_steps_on_past_its_memory(world, video):
    actions = torch.zeros(2, 12, dtype=torch.long)
    assert world.rollout(video[:, :1], actions).shape[1] == 12
    assert world._past.dynamics.unseen.eq(0).all()


def test_worlds_begin_anew_on_their_own(world, video):
    """Sampled greedily, a world of a batch does what it would do alone, whoever begins anew beside it."""
    greedy = replace(world.config, sampling=SamplingConfig(steps=3, temperature=0.0, choice_noise=0.0))
    made = World(greedy, world.tokenizer, world.lam, world.dynamics, "cpu")
    first, second = made.rollout(video[:1, :1], ACTIONS[:1]), made.rollout(video[1:, :3], ACTIONS[1:, 2:])
    made.reset(torch.cat((video[:1, :1], video[:1, 2:3])))
    frames = [made.step(ACTIONS[:, i]) for i in range(2)]
    made.reset_some([1], video[1:, :3])
    frames += [made.step(ACTIONS[:, i]) for i in (2, 3)]
    assert_close(torch.stack(frames, 1)[:1], first, atol=1, rtol=0)
    assert_close(torch.stack(frames[2:], 1)[1:], second, atol=1, rtol=0)


def test_a_snapshot_is_a_moment_to_come_back_to(world, video):
    world = world.fresh_copy(replace(world.config.sampling, temperature=1.0))
    world.reset(video)
    world.step([0, 1])
    moment = world.snapshot()
    futures = []
    for _ in range(2):
        world.restore(moment)
        futures.append(torch.stack([world.step([2, 3]), world.step([4, 5])]))
    assert_close(*futures)
    assert moment.size > world._past.frame.nbytes + world._past.tokens.nbytes


def tensors(past):
    return past.tensors


def test_a_worlds_past_stays_where_it_is(world, video):
    """What was recorded of its tensors goes on being of them, however the world begins anew."""
    made = world.fresh_copy(replace(world.config.sampling, temperature=1.0))
    made.reset(video)
    places = [tensor.data_ptr() for tensor in tensors(made._past)]
    moment = made.snapshot()
    first = made.rollout(video, ACTIONS, seed=1)
    made.restore(moment)
    again = made.rollout(video, ACTIONS, seed=1)
    assert (first == again).all()
    made.reset_some([1], video[1:, :2])
    assert [tensor.data_ptr() for tensor in tensors(made._past)] == places
    made.reset(video[:1])
    assert made.step([0]).shape == (1, 64, 64, 3)


def test_fresh_copies_share_weights_and_nothing_else(world, video):
    one, other = world.fresh_copy(), world.fresh_copy(SamplingConfig(steps=1))
    one.reset(video)
    other.reset(video.flip(0), seed=5)
    alone = world.rollout(video, ACTIONS[:, :2])
    side_by_side = []
    for step in range(2):
        side_by_side.append(one.step(ACTIONS[:, step]))
        other.step(ACTIONS[:, step])
    assert (torch.stack(side_by_side, 1) == alone).all()
    assert other.config.sampling.steps == 1
    assert one.dynamics is other.dynamics


def test_actions_are_inferred_between_frames(world, video):
    actions = world.infer_actions(video)
    assert actions.shape == (2, 3)
    assert 0 <= int(actions.min()) <= int(actions.max()) < world.num_actions
    assert_close(world.infer_actions(video.numpy()), actions)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w, v: w.reset(v[..., :2]), "this world takes uint8 .b t 64 64 3."),
        (lambda w, v: w.reset(v.float().numpy()), "this world takes uint8"),
        (lambda w, v: w.reset(v[:, :0]), "at least one frame"),
        (lambda w, v: (w.reset(v), w.step([0])), "2 integers, one per world"),
        (lambda w, v: (w.reset(v), w.step([0, 8])), "out of range; use 0 to 7"),
        (lambda w, v: (w.reset(v), w.reset_some([0, 0], v)), "give one of 0 to 1"),
        (lambda w, v: (w.reset(v), w.reset_some([2], v[:1])), "give one of 0 to 1"),
        (lambda w, v: w.infer_actions(v[:, :1]), "at least 2"),
        (lambda w, v: w.rollout(v, np.zeros(2, int)), "a rollout takes"),
    ],
)
def test_what_a_world_refuses(world, video, call, message):
    with pytest.raises(ValueError, match=message):
        call(world, video)


COMPILED = """
import sys
import torch
from minigenie import World

world, naive = World.load(sys.argv[1], "cpu").compile(), World.load(sys.argv[1], "cpu")
frames = torch.randint(256, (1, 2, 64, 64, 3), dtype=torch.uint8)
actions = torch.arange(6)[None]
for seed in (1, 2):
    difference = (world.rollout(frames, actions, seed).int() - naive.rollout(frames, actions, seed).int()).abs()
    assert (difference <= 1).float().mean() > 0.99, difference.float().mean()
"""


def test_a_compiled_world_imagines_the_same(trained, tmp_path):
    """In a process of its own: the type checks of these tests are no code to compile."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", COMPILED, str(trained)], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0 if can_compile(torch.device("cpu")) else "install g++" in run.stderr, run.stderr


def test_without_a_compiler_a_world_says_so(world, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="or do without"):
        world.compile()


def test_a_world_without_a_frame():
    config = small_recipe()
    made = World(config, config.make_tokenizer(), config.make_lam(), config.make_dynamics(), "cpu")
    with pytest.raises(ValueError, match="call reset"):
        made.step([0])


def test_a_folder_rebuilds_its_world(trained, toy):
    world = World.load(trained, device="cpu")
    video = torch.from_numpy(toy.clips(toy.windows(5)[:2], 5))
    actions = world.infer_actions(video)
    again = World.load(trained, device="cpu")
    assert_close(world.rollout(video, actions), again.rollout(video, actions))
    assert world.frame_shape == (64, 64, 3)
    assert world.num_actions == 8


@pytest.mark.parametrize("name", ["tokenizer.safetensors", "lam.safetensors", "dynamics.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "junk", "empty"])
def test_a_damaged_folder_says_which_file(trained, tmp_path, name, damage):
    folder = shutil.copytree(trained, tmp_path / "world")
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"truncated": content[: len(content) // 2], "junk": b"\x80\x04junk", "empty": b""}[damage])
    with pytest.raises((ValueError, FileNotFoundError), match=name) as caught:
        World.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "version 99"),
        ({"format": "other"}, "not a world's config"),
        ({"context_frames": "many"}, "context_frames is 'many'; it should be int"),
        ({"sampling": {"speed": 1}}, "has no field 'speed'"),
    ],
)
def test_a_config_that_says_nonsense(trained, tmp_path, change, message):
    folder = shutil.copytree(trained, tmp_path / "world")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        World.load(folder)


def test_weights_of_another_world(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "world")
    shutil.copy(folder / "lam.safetensors", folder / "dynamics.safetensors")
    with pytest.raises(ValueError, match=r"dynamics.safetensors does not fit"):
        World.load(folder)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK", "I;16", "LA"])
@pytest.mark.parametrize("size", [(1, 1), (64, 64), (300, 20), (33, 500)])
def test_a_prompt_of_any_size_and_mode(tmp_path, mode, size):
    path = tmp_path / ("prompt.tif" if mode == "CMYK" else "prompt.png")
    Image.new(mode, size).save(path)
    prompt = read_prompt(path, (64, 64, 3))
    assert prompt.shape == (1, 1, 64, 64, 3)
    assert prompt.dtype == torch.uint8


@pytest.mark.parametrize(
    ("mode", "grey"), [("L", 128), ("I;16", 32896), ("I", 32896), ("F", 128.0), ("RGB", (128,) * 3)]
)
def test_a_prompt_keeps_its_brightness(tmp_path, mode, grey):
    path = tmp_path / ("prompt.tif" if mode in ("I", "F") else "prompt.png")
    Image.new(mode, (80, 80), grey).save(path)
    assert read_prompt(path, (64, 64, 3)).unique().tolist() == [128]


def test_a_prompt_is_cropped_from_the_middle(tmp_path):
    picture = np.zeros((64, 192, 3), np.uint8)
    picture[:, 64:128] = (255, 100, 0)
    Image.fromarray(picture).save(tmp_path / "wide.png")
    prompt = read_prompt(tmp_path / "wide.png", (64, 64, 3))
    assert prompt.flatten(0, 3).unique(dim=0).tolist() == [[255, 100, 0]]


@pytest.mark.parametrize("content", [b"", b"junk", b"\x89PNG\r\n\x1a\n" + b"0" * 40])
def test_a_prompt_that_is_no_picture(tmp_path, content):
    (tmp_path / "prompt.png").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        read_prompt(tmp_path / "prompt.png", (64, 64, 3))


def test_a_prompt_of_too_many_pixels_is_not_even_decoded(tmp_path):
    Image.new("1", (8_000, 8_000)).save(tmp_path / "prompt.png")
    with pytest.raises(ValueError, match="prompt.png has more than 32 million pixels; scale it down"):
        read_prompt(tmp_path / "prompt.png", (64, 64, 3))


def test_group_and_context_do_not_change_the_contract(video):
    recipe = small_recipe()
    config = replace(recipe, dynamics=replace(recipe.dynamics, group=1, context="masked", motions=0))
    made = World(config, config.make_tokenizer(), config.make_lam(), config.make_dynamics(), "cpu")
    assert made.rollout(video, torch.zeros(2, 2, dtype=torch.long)).shape == (2, 2, 64, 64, 3)


def test_how_sure_a_world_is_of_a_frame(world, video):
    """As sure as its tokens were likely; and asking changes nothing."""
    made = world.fresh_copy(SamplingConfig(steps=3, temperature=1.0))
    made.reset(video)
    plain = made.step([0, 1])
    made.reset(video)
    frames, certainty = made.step([0, 1], certainty=True)
    assert torch.equal(frames, plain)
    assert certainty.shape == (2,)
    assert ((certainty > 0) & (certainty < 1)).all()
    with torch.no_grad():
        made.dynamics.head.bias[3] += 100  # a world that knows one token only has no doubt
    try:
        made.reset(video)
        assert_close(made.step([0, 1], certainty=True)[1], torch.ones(2))
    finally:
        with torch.no_grad():
            made.dynamics.head.bias[3] -= 100
