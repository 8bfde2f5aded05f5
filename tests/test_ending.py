"""Whether it is over: what footage says, what a network makes of it, and what a world, its players and agents do."""

import re
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from minigenie import env as _registers  # noqa: F401
from minigenie.batches import ending_batch, ending_moments
from minigenie.data.collect import collect, procgen_game
from minigenie.data.dataset import Dataset, DatasetWriter, Episode
from minigenie.ending import LINGER, SURE, Ending, EndingConfig, Told, made_up
from minigenie.env import WorldVectorEnv
from minigenie.eval import ending as measured
from minigenie.eval.evaluator import Evaluator
from minigenie.finish import export_world
from minigenie.maskgit import SamplingConfig
from minigenie.pipeline import ending_fit, train_world, with_ending
from minigenie.play import rollout
from minigenie.play.player import Player
from minigenie.settings import CollectSettings, RolloutSettings
from minigenie.tokenizer import TokenizerConfig
from minigenie.world import World, read_prompt

ID = "minigenie/World-v0"
NUM_CODES = 16


def write(folder, episodes, frames=40, side=8):
    header = {"frame_size": (side, side), "fps": 10, "source": "s", "generator": "g", "split": "train", "settings": {}}
    writer = DatasetWriter(folder, **header)
    writer.write(0, np.zeros((frames, side, side, 3), np.uint8), episodes)
    return writer.close()


def test_collected_episodes_ended_unless_they_were_cut_off(tmp_path):
    """The next frame of a game that ended begins another level; where collecting stops, nobody knows."""
    settings = CollectSettings(game="toy", frames=2_048, policy="explore", levels=20, num_envs=2)
    dataset = collect(settings, tmp_path / "toy")
    assert Dataset.open(dataset.folder).episodes == dataset.episodes
    by_game = np.cumsum([episode.length for episode in dataset.episodes]) % 512 == 0  # two games of 512 steps a shard
    ended = np.array([episode.ended for episode in dataset.episodes])
    assert ended.any()
    assert not ended[by_game].any()
    assert ended[~by_game].all()
    assert not any(episode.won for episode in dataset.episodes if not episode.ended)


def test_a_coinrun_level_is_won_at_its_coin(tmp_path):
    """There alone it has a reward."""
    settings = CollectSettings(game="coinrun", frames=1, mode="easy", levels=50, num_envs=8)
    game, ends = procgen_game(settings, 8, 0), []
    for step in range(400):
        game.step(np.full(8, 8 if step % 20 < 15 else 7))
        ends += [(won, reward > 0) for won, reward in zip(game.won[game.first], game.reward[game.first], strict=True)]
        assert not game.won[~game.first].any()
    assert {won for won, _ in ends} == {False, True}
    assert all(won == rewarded for won, rewarded in ends)


def test_datasets_of_before_know_no_ends(toy, unmarked, recipe):
    recipe = replace(recipe, ending=EndingConfig(dim=4, lost=2))
    assert with_ending(recipe, toy).ending == EndingConfig(dim=4, lost=2)
    assert not any(episode.ended for episode in unmarked.episodes)
    assert with_ending(recipe, unmarked).ending == EndingConfig(lost=2)


def test_what_it_learns_from_are_ends_and_what_is_surely_none(tmp_path):
    """An episode's last frame is an end, or nobody knows; a first frame has none before it but itself."""
    episodes = [Episode(0, 0, 10, ended=True), Episode(0, 10, 5), Episode(0, 15, 1, ended=True), Episode(0, 16, 24)]
    episodes[0] = Episode(0, 0, 10, ended=True, won=True)
    moments = ending_moments(write(tmp_path / "data", episodes))
    assert moments.ended.tolist() == [[8, 9], [15, 15]]
    assert moments.won.tolist() == [True, False]
    assert moments.others[:, 1].tolist() == [*range(9), *range(10, 14), *range(16, 39)]
    assert moments.others[:, 0].tolist() == [0, *range(8), 10, *range(10, 13), 16, *range(16, 38)]


def learnt(moments, tokens, tokenizer, steps, lost=0):
    torch.manual_seed(0)
    model, config = Ending(EndingConfig(dim=16, lost=lost), tokenizer).train(), replace(ending_fit(), batch_size=64)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(steps):
        loss, _ = model(ending_batch(moments, tokens, 0, config, step, range(64)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture
def tokenizer(recipe):
    quantizer = replace(recipe.tokenizer.quantizer, num_codes=NUM_CODES)
    return TokenizerConfig(frame_size=(16, 16), patch=4, quantizer=quantizer)


def test_it_learns_what_comes_before_an_end(tmp_path, tokenizer):
    """Here a code that comes up in some places, and was not there a frame ago, is the end; two codes are, one of which
    wins. Both frames are needed."""
    rng = np.random.default_rng(0)
    episodes = [Episode(0, first, 8, ended=True, won=first % 16 == 0) for first in range(0, 4_000, 8)]
    moments = ending_moments(write(tmp_path / "data", episodes, frames=4_000))
    tokens = rng.integers(2, NUM_CODES, size=(4_000, 16))
    for last in range(7, 4_000, 8):
        tokens[last, rng.choice(16, 4, replace=False)] = int(last % 16 == 7)
    model = learnt(moments, tokens, tokenizer, steps=250)
    seen = torch.from_numpy(rng.integers(2, NUM_CODES, size=(400, 2, 16)))
    assert model.tell(seen).over.float().mean() < 0.05
    code = torch.arange(400)[:, None].expand(400, 4) % 2
    seen[:, 1].scatter_(1, torch.rand(400, 16).topk(4).indices, code)
    assert model.tell(seen).over.float().mean() > 0.9
    assert model.tell(seen.flip(1)).over.float().mean() < 0.1
    right = model.tell(seen).won == (code[:, 0] == 1)
    assert right.float().mean() > 0.9


def test_where_nothing_is_to_be_seen_it_says_how_often_episodes_end(tmp_path, tokenizer):
    """Though a quarter of what it learns from are last frames."""
    episodes = [Episode(0, first, 40, ended=True) for first in range(0, 4_000, 40)]
    moments = ending_moments(write(tmp_path / "data", episodes, frames=4_000))
    tokens = np.random.default_rng(0).integers(NUM_CODES, size=(4_000, 16))
    model, config = Ending(EndingConfig(dim=8), tokenizer), ending_fit()
    torch.nn.init.zeros_(model.head[-1].weight)
    with torch.no_grad():
        model.head[-1].bias[0] = float(np.log(1 / 39))
    loss, _ = model(ending_batch(moments, tokens, 0, config, 0, range(256)))
    loss.backward()
    assert model.head[-1].bias.grad[0].abs() < 1e-3


def test_what_is_made_up_repeats_a_part_of_itself():
    """Both frames alike, all but what stays around the middle."""
    true = torch.arange(200 * 2 * 256).view(200, 2, 256)
    some = made_up(true, (16, 16))
    moment = torch.arange(200)[:, None]
    before, now = (some - 512 * moment[:, None]).unbind(1)
    assert torch.equal(before, now - 256)
    assert ((before >= 0) & (before < 256)).all()
    inner = torch.zeros(16, 16, dtype=torch.bool)
    inner[6:10, 6:10] = True
    outer = before[:, ~inner.flatten()]
    assert max(len(frame.unique()) for frame in outer) <= 36
    assert {len(frame.unique()) for frame in outer} >= {1, 4, 9, 36}
    stays = (before == torch.arange(256))[:, inner.flatten()]
    assert 0.2 < stays.float().mean() < 0.6
    for frame in before.view(200, 16, 16)[:, :, :6]:
        assert any(torch.equal(frame[k:], frame[:-k]) for k in range(1, 7))


def test_it_learns_what_no_footage_has(tmp_path, tokenizer):
    """Here true frames are sky above ground, and where only one of them is, the world is lost; not at once."""
    rng, moments = np.random.default_rng(0), ending_moments(write(tmp_path / "data", [Episode(0, 0, 40, ended=True)]))
    horizon = rng.integers(1, 4, size=40)
    tokens = np.where(
        np.arange(16) // 4 < horizon[:, None], rng.integers(8, size=(40, 16)), rng.integers(8, 16, size=(40, 16))
    )
    model = learnt(moments, tokens, tokenizer, steps=600, lost=16)
    true = torch.from_numpy(tokens[:, None]).expand(-1, 2, -1)
    sky, ground = torch.randint(8, (40, 2, 16)), torch.randint(8, 16, (40, 2, 16))
    for frames, lost in ((true, False), (sky, True), (ground, True)):
        doubt = [torch.full((40,), -SURE)]
        while len(doubt) < 2 * LINGER:
            doubt.append(model.doubt(frames, doubt[-1]))
        assert (doubt[10] < 0).all()
        assert ((doubt[-1] > 0) == lost).float().mean() > 0.9


def test_parts_of_a_batch_are_the_batch(toy, tokenizer):
    tokens = np.random.default_rng(0).integers(NUM_CODES, size=(toy.num_frames, 16))
    moments, config = ending_moments(toy), replace(ending_fit(), batch_size=12)
    whole = ending_batch(moments, tokens, 0, config, 3, range(12))
    parts = [ending_batch(moments, tokens, 0, config, 3, some) for some in (range(5), range(5, 12))]
    for name, each in whole.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), each)
    assert whole["last"].sum() == 3


# Worlds.


def test_a_world_learns_its_ends_with_all_else(toy, recipe, tmp_path):
    fit = replace(ending_fit(), steps=2, batch_size=8)
    recipe = replace(recipe, ending=EndingConfig(dim=8), ending_fit=fit)
    made = train_world(toy, recipe, tmp_path / "world", device=torch.device("cpu"))
    made.reset(np.array(toy.episode_frames(0)[None, :3]))
    loaded = World.load(tmp_path / "world", "cpu")
    for name, weights in made.ending.state_dict().items():
        torch.testing.assert_close(loaded.ending.state_dict()[name], weights)
    assert not made.told().over.any()  # so little is learnt that an end is as unlikely as ever
    export_world(tmp_path / "world", tmp_path / "copy")
    assert World.load(tmp_path / "copy", "cpu").ending is not None
    (tmp_path / "copy/ending.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"ending\.safetensors"):
        World.load(tmp_path / "copy", "cpu")


def test_footage_without_ends_teaches_none(tmp_path, recipe):
    dataset = write(tmp_path / "data", [Episode(0, 0, 40)], side=64)
    recipe = replace(recipe, ending=EndingConfig(dim=8))
    with pytest.raises(ValueError, match=r"does not say that any of its episodes ended; set ending\.dim to 0"):
        train_world(dataset, recipe, tmp_path / "world", device=torch.device("cpu"))


@pytest.mark.parametrize(("change", "said"), [({"clip_frames": 2}, "clip_frames"), ({"batch_size": 1}, "batch_size")])
def test_an_ending_s_schedule_that_cannot_be(recipe, change, said):
    with pytest.raises(ValueError, match=f"{said} of ending_fit is"):
        replace(recipe, ending_fit=replace(ending_fit(), **change))


def test_what_is_told_is_of_the_newest_two_frames(ending_world, toy):
    """However the world got there; of true frames nothing is."""
    world = World.load(ending_world, "cpu")
    video = torch.from_numpy(toy.clips(toy.windows(6)[::150][:8], 6))
    world.reset(video)
    before = world.snapshot()
    assert not world.told().over.any()
    first = []
    for k in range(3):
        tokens = world.snapshot().past.tokens[:, -1]
        world.step([k] * 8)
        pairs = world.snapshot().past.tokens
        torch.testing.assert_close(pairs[:, 0], tokens)
        first.append(world.told())
        torch.testing.assert_close(first[-1], world.ending.tell(pairs))
        assert not (first[-1].won & ~first[-1].over).any()
    over = torch.stack([told.over for told in first])
    assert over.any()
    assert not over.all()
    world.restore(before)
    torch.testing.assert_close([(world.step([k] * 8), world.told())[1] for k in range(3)], first)
    ended = first[-1].over.nonzero()[0, 0].item()
    world.reset_some([ended], video[:1])
    assert world.told().over.tolist() == [over and i != ended for i, over in enumerate(first[-1].over.tolist())]


def test_above_temperature_0_it_is_drawn_by_its_chance(ending_world, toy):
    world = World.load(ending_world, "cpu").fresh_copy(SamplingConfig(steps=1, temperature=1.0))
    with torch.no_grad():
        world.ending.head[-1].weight *= 0.01 / world.ending.head[-1].weight.std()
        world.ending.head[-1].bias[0] = -1.0
    world.reset(torch.from_numpy(toy.clips(toy.windows(1)[:400], 1)), seed=2)
    world.step([1] * 400)
    chances = world.ending.logits(world.snapshot().past.tokens)[:, 0].sigmoid()
    assert 0.1 < chances.mean() < 0.5
    assert abs(world.told().over.float().mean() - chances.mean()) < 4 * (chances.mean() / 400).sqrt()
    again = world.fresh_copy()
    again.reset(torch.from_numpy(toy.clips(toy.windows(1)[:400], 1)), seed=2)
    again.step([1] * 400)
    torch.testing.assert_close(again.told(), world.told())


def test_a_world_that_is_lost_for_a_while_is_over(ending_world, toy):
    """Each for itself, and one that begins anew is not lost any more."""
    world = World.load(ending_world, "cpu")
    with torch.no_grad():
        world.ending.head[-1].weight.zero_(), world.ending.head[-1].bias.fill_(-20.0)
        world.ending.lost.head[-1].weight.zero_(), world.ending.lost.head[-1].bias.fill_(2.0)
    frames = torch.from_numpy(toy.clips(toy.windows(1)[:2], 1))
    world.reset(frames)
    over = []
    for step in range(60):
        world.step([1, 2])
        over.append(world.told().over.tolist())
        if step == 20:
            world.reset_some([1], frames[1:])
    assert not np.array(over)[:21].any()
    first = np.array(over).argmax(0)
    assert first[1] == first[0] + 21
    assert np.array(over)[first[0] :, 0].all()
    assert not world.told().won.any()


def test_the_naive_reference_is_the_same_with_an_end(ending_world, toy):
    world = World.load(ending_world, "cpu").fresh_copy(SamplingConfig(steps=2, temperature=1.0))
    frames, actions = torch.from_numpy(toy.clips(toy.windows(2)[:2], 2)), torch.tensor([[1, 2, 3], [3, 0, 2]])
    cached, naive = (world.rollout(frames, actions, seed=4, cached=cached) for cached in (True, False))
    assert (cached.int() - naive.int()).abs().max() <= 1


def test_a_world_of_any_footage_learns_when_it_is_lost(toy, unmarked, recipe, tmp_path):
    """Ends it never tells, at any temperature."""
    fit = replace(ending_fit(), steps=2, batch_size=8)
    recipe = with_ending(replace(recipe, ending=EndingConfig(dim=8, lost=8), ending_fit=fit), unmarked)
    train_world(unmarked, recipe, tmp_path / "world", device=torch.device("cpu"))
    world = World.load(tmp_path / "world", "cpu").fresh_copy(SamplingConfig(steps=1, temperature=1.0))
    with torch.no_grad():
        world.ending.lost.head[-1].weight.zero_(), world.ending.lost.head[-1].bias.copy_(torch.tensor([-20.0]))
    world.reset(torch.from_numpy(toy.clips(toy.windows(1)[:8], 1)))
    for _ in range(30):
        world.step([1] * 8)
        assert not world.told().over.any()
    assert (world.snapshot().past.doubt == -SURE).all()
    with torch.no_grad():
        world.ending.lost.head[-1].bias.fill_(20.0)
    for _ in range(30):
        world.step([1] * 8)
    assert world.told().over.all()
    assert not world.told().won.any()


def test_a_world_that_knows_no_end_is_never_over(trained, toy):
    world = World.load(trained, "cpu")
    world.reset(np.array(toy.episode_frames(0)[None, :2]))
    assert world.told().over.tolist() == world.told().won.tolist() == [False]


# Players and agents.


def test_a_player_begins_anew_where_it_is_over(ending_world):
    """From the same picture with the same luck; and undo goes back to before it was over."""
    player = Player(World.load(ending_world, "cpu"))
    start = read_prompt(ending_world / "prompts/00.png", player.world.frame_shape)[0, 0].numpy()
    player.reset(start, seed=3)
    seen = [player.view]
    while not (outcome := player.step(1)):
        told = player.world.told()
        assert not told.over or player.view.number == len(seen)
        seen.append(player.view)
        assert len(seen) < 50
    assert outcome == ("won" if told.won else "lost")
    assert (player.view.number, player.view.action) == (0, None)
    np.testing.assert_array_equal(player.view.frame, start)
    for before in seen[1:]:
        assert player.step(1) is None
        np.testing.assert_array_equal(player.view.frame, before.frame)
    assert player.step(1) == outcome
    assert player.undo()
    np.testing.assert_array_equal(player.view.frame, seen[-1].frame)
    assert player.world.told().over


def test_a_rollout_says_when_it_was_over_and_goes_on(ending_world, tmp_path, capsys):
    settings = RolloutSettings(world=str(ending_world), actions="1*30", out=tmp_path / "clip.gif", device="cpu")
    rollout.run(settings)
    said = capsys.readouterr().out
    last = int(re.search(r"^31 frames in .*clip\.gif, over at frame (\d+) by what the world knows$", said, re.M)[1])
    world = World.load(ending_world, "cpu")
    world.reset(read_prompt(ending_world / "prompts/00.png", world.frame_shape))
    told = [(world.step([1]), bool(world.told().over))[1] for _ in range(30)]
    assert told.index(True) == last - 1


def played(envs, steps):
    envs.reset(seed=5)
    return [envs.step(np.arange(envs.num_envs) % 8) for _ in range(steps)]


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_members_terminate_and_begin_anew(ending_world, output):
    """At the step after, as Gymnasium has it; the world itself says when, and who won."""
    envs = WorldVectorEnv(6, ending_world, device="cpu", output=output, max_episode_steps=-1, part=4)
    envs.reset(seed=5)
    ended = np.zeros(6, bool)
    for _ in range(6):
        frames, rewards, terminated, truncated, _ = envs.step(np.arange(6))
        assert not truncated.any()
        assert not np.asarray(terminated)[ended].any()  # these are at their start
        prompts = np.asarray(envs.prompts)[:, 0]
        assert all(any((np.asarray(frames[i]) == prompt).all() for prompt in prompts) for i in np.flatnonzero(ended))
        told, won = (np.concatenate([world.told()[k].numpy() for world in envs._parts]) for k in (0, 1))
        np.testing.assert_array_equal(np.asarray(terminated), told & ~ended)
        np.testing.assert_array_equal(np.asarray(rewards), won & ~ended)
        ended = np.asarray(terminated)


def test_members_that_begin_anew_at_once_show_how_it_ended(ending_world):
    late, soon = (
        WorldVectorEnv(4, ending_world, device="cpu", max_episode_steps=-1, autoreset_mode=mode)
        for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP)
    )
    one, other = played(late, 1)[0], played(soon, 1)[0]
    np.testing.assert_array_equal(one[2], other[2])
    assert one[2].any()
    for member in np.flatnonzero(one[2]):
        np.testing.assert_array_equal(other[4]["final_obs"][member], one[0][member])
        assert any((other[0][member] == prompt[0].numpy()).all() for prompt in soon.prompts)


def test_members_that_are_to_go_on_do(ending_world):
    envs = WorldVectorEnv(4, ending_world, device="cpu", max_episode_steps=-1, ends=False)
    assert not any(step[2].any() for step in played(envs, 4))


def test_one_world_terminates_and_is_to_be_reset(ending_world):
    env = gymnasium.make(ID, world=ending_world, device="cpu", disable_env_checker=True)
    env.reset(seed=1)
    for _ in range(100):
        _, _, terminated, truncated, _ = env.step(3)
        assert isinstance(terminated, bool)
        if terminated:
            break
    assert terminated
    assert not truncated
    with pytest.raises(ValueError, match=r"members \[0\] are at their end; begin them anew with reset$"):
        env.step(3)
    env.reset()
    env.step(3)


# Measured.


@pytest.fixture
def marked(ending_world, monkeypatch):
    """A world to which a picture is the last if its first pixel is not black, and won and lost if it is bright."""
    by_pixel = lambda world, frames: [frames[:, 0, 0, 0] > bound for bound in (0, 200, 100)]  # noqa: E731
    monkeypatch.setattr(measured, "told_at", by_pixel)
    return World.load(ending_world, "cpu")


def footage(folder, rows):
    """rows: for each episode, its length, how it ended, the frames that are told to be the last, and as what."""
    frames, episodes = [], []
    for length, ended, told, told_won in rows:
        video = np.zeros((length, 8, 8, 3), np.uint8)
        video[told] = 255 if told_won else 99
        episodes.append(Episode(0, sum(map(len, frames)), length, ended=bool(ended), won=ended == "won"))
        frames.append(video)
    header = {"frame_size": (8, 8), "fps": 10, "source": "s", "generator": "g", "split": "test", "settings": {}}
    writer = DatasetWriter(folder, **header)
    writer.write(0, np.concatenate(frames), episodes)
    return writer.close()


def test_what_counts_as_told(tmp_path, marked):
    """In time is at one of the last five frames and not before; where nothing ended, all is early."""
    rows = [
        (20, "won", [19], True), (20, "lost", [15], True), (20, "won", [14, 19], True), (20, "won", [], True),
        (20, "", [], False), (20, "", [19], False), (3, "lost", [0], False), (20, "won", [3, 4], True),
    ]  # fmt: skip
    evaluator = Evaluator(marked, footage(tmp_path / "data", rows), 100, 0)
    found = measured.measure(evaluator)["ending"]
    assert found["told"]["mean"] == 3 / 6
    assert found["told"]["clips"] == 6
    assert found["early"]["mean"] == 3 / 8
    assert found["early"]["clips"] == 8
    assert found["won"] == 4 / 6
    assert (found["outcome"]["mean"], found["outcome"]["clips"]) == (2 / 3, 3)
    assert (found["lost"]["mean"], found["lost"]["clips"]) == (4 / 8, 8)


def test_footage_that_does_not_say_what_ended_measures_no_ends(tmp_path, marked):
    evaluator = Evaluator(marked, footage(tmp_path / "data", [(20, "", [3], True), (9, "", [], False)]), 8, 0)
    assert set(measured.measure(evaluator)["ending"]) == {"lost"}
    assert evaluator.notes == [measured.NOT_KNOWN]
    marked.ending.knows = False
    silent = Evaluator(marked, evaluator.dataset, 8, 0)
    assert measured.measure(silent)["ending"]["lost"]["mean"] == 0.5
    assert not silent.notes


def test_true_frames_are_asked_as_those_of_play(ending_world, toy):
    """Each with the one before it, through the tokenizer's memory."""
    world, frames = World.load(ending_world, "cpu"), torch.from_numpy(np.array(toy.episode_frames(0)[:6]))
    tokens = world.tokenizer.encode(frames[None] / 255)[0]
    pairs = torch.stack([tokens[[max(0, i - 1), i]] for i in range(6)])
    *told, lost = measured.told_at(world, frames)
    torch.testing.assert_close(Told(*told), world.ending.tell(pairs))
    assert not lost.any()
