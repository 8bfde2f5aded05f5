"""The dynamics model of Genie (arXiv:2402.15391, sec. 2.1): a MaskGIT ST-transformer that fills in the next frame.

Frame t's tokens are predicted from the tokens of the frames before it, the latent action that leads into it, and those
of its own tokens that are already filled in. Two ways to train it:

  context="masked"  the paper's: tokens of past and present alike are masked at a rate U(0.5, 1).
  context="clean"   as at play, where the past is known and only the present is masked: every clip runs through the
                    model as two streams at once, its clean frames and its masked frames. Masked frame t sees the clean
                    frames before it and itself. Twice the work a clip, and every frame of it is learnt under the very
                    condition it will be imagined in. The mask rate follows MaskGIT's cosine.

With `motions`, and not in the paper, how far the picture moves as a whole is told before the tokens are: see
minigenie.camera.

Dimensions:  b batch   t frames   n patches per frame   p positions of the transformer   d model width   k codes
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minigenie.camera import PAST, Camera, History
from minigenie.errors import UserError
from minigenie.lam import LatentActionModel
from minigenie.maskgit import Filled, fill_most_confident
from minigenie.nn.model import Model, Sample
from minigenie.nn.patches import patch_grid, to_uint8
from minigenie.nn.quantize import embeddings_of
from minigenie.nn.st_transformer import STConfig, STTransformer, TimeCache
from minigenie.pictures import grid
from minigenie.tokenizer import TokenizerConfig, VideoTokenizer

SHOWN = -100  # a target that does not count


@dataclass(frozen=True, kw_only=True)
class DynamicsConfig:
    """group: side of the square of tokens that share one position of the transformer, dividing the frame's tokens; 2
    makes a frame four times cheaper. token_dim: width of a token's embedding, of which a position joins group^2.
    context: see the module's docstring. corrupt: with a clean context, up to this share of a past frame's tokens is
    replaced by random ones, so that the world bears its own mistakes. min_mask: least mask rate of the masked one.
    motions: of how many the camera's is one, 0 for none; with a clean context only. memory: pixels around a frame, of
    which a world with a camera remembers what was seen there."""

    group: int = 1
    token_dim: int = 64
    transformer: STConfig = field(default_factory=lambda: STConfig(num_blocks=12))
    context: Literal["clean", "masked"] = "clean"
    corrupt: float = 0.1
    min_mask: float = 0.5
    motions: int = 0
    memory: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.group <= 65_536 or not 1 <= self.token_dim <= 65_536:
            raise UserError(f"group {self.group} and token_dim {self.token_dim} must be 1 to 65536")
        for name in ("corrupt", "min_mask"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it is a share in [0, 1)")
        if not 0 <= self.motions <= 65_535:
            raise UserError(f"motions is {self.motions}; it must be 0 to 65535")
        if self.motions and self.context == "masked":
            raise UserError(f"motions is {self.motions}; with context=masked it must be 0")
        if not 0 <= self.memory <= (1024 if self.motions else 0):
            raise UserError(f"memory is {self.memory}; it must be 0 to 1024 pixels, and 0 without motions")


class Given(NamedTuple):
    """What is known of frames before their tokens, each [b t], or [b] of one frame. action: the one that leads into
    each. motion: the code of the camera's. moved: [b t n], the tokens of the frame before, moved by that; they count
    where a token is hidden."""

    action: Int[Tensor, "b t"]
    motion: Int[Tensor, "b t"] | None = None
    moved: Int[Tensor, "b t n"] | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "Given":
        motion, moved = (each if each is None else change(each) for each in self[1:])
        return Given(change(self.action), motion, moved)

    def then(self, coming: "Given") -> "Given":
        """With one more frame [b], of which as much is given."""
        joined = (
            each if each is None or one is None else torch.cat((each, one[:, None]), dim=1)
            for each, one in zip(self[1:], coming[1:], strict=True)
        )
        return Given(torch.cat((self.action, coming.action[:, None]), dim=1), *joined)


class Dynamics(Model):
    """Frame tokens [b t n] in 0..num_codes-1 or `mask_id`, actions [b t-1] in 0..num_actions-1 -> logits."""

    def __init__(self, config: DynamicsConfig, tokenizer: TokenizerConfig, num_actions: int) -> None:
        super().__init__()
        self.config = config
        self.num_codes = tokenizer.quantizer.num_codes
        self.mask_id = self.num_codes
        self.no_action = num_actions  # leads into the first frame
        self.grid = patch_grid(config.group, tokenizer.grid)
        dim, joined = config.transformer.dim, config.group**2 * config.token_dim
        self.embed_token = nn.Embedding(self.num_codes + 1, config.token_dim)
        self.join = nn.Linear(joined, dim)
        self.embed_action = nn.Embedding(num_actions + 1, dim)
        self.place = nn.Parameter(0.02 * torch.randn(self.grid[0] * self.grid[1], dim))
        self.transformer = STTransformer(config.transformer, self.grid)
        self.part = nn.Linear(dim, joined)
        self.head = nn.Linear(config.token_dim, self.num_codes)
        self.camera = (
            Camera(config.motions, dim, self.num_codes, config.token_dim, tokenizer.grid, num_actions, config.memory)
            if config.motions
            else None
        )

    @torch.no_grad()
    def init_from_codebook(self, codebook: Float[Tensor, "k c"]) -> None:
        """Begin with the tokenizer's geometry: codes that look alike start with alike embeddings and logits."""
        alike = embeddings_of(codebook, self.config.token_dim)
        self.embed_token.weight[:-1] = alike
        self.head.weight.copy_(alike / math.sqrt(self.config.token_dim))
        self.head.bias.zero_()
        if self.camera is not None:
            self.camera.embed_token.weight.copy_(alike)

    def _embed(self, tokens: Int[Tensor, "b t n"], given: Given) -> Float[Tensor, "b t p d"]:
        """Tokens and what is given of their frames, as positions of the transformer: a group of tokens each."""
        side = self.config.group
        embedded = self.embed_token(tokens)
        if given.moved is not None:
            embedded = embedded + self.embed_token(given.moved) * (tokens == self.mask_id)[..., None]
        joined = rearrange(embedded, "b t (y p x q) e -> b t (y x) (p q e)", y=self.grid[0], p=side, q=side)
        leading_in = self.embed_action(given.action)
        if self.camera is not None and given.motion is not None:
            leading_in = leading_in + self.camera.embed(given.motion)
        return self.join(joined) + self.place + leading_in[:, :, None]

    def _ungroup(self, hidden: Float[Tensor, "b t p d"]) -> Float[Tensor, "b t n e"]:
        side = self.config.group
        return rearrange(self.part(hidden), "b t (y x) (p q e) -> b t (y p x q) e", y=self.grid[0], p=side, q=side)

    def given(self, batch: dict[str, Tensor]) -> Given:
        """Of the frames of clips. batch: "actions" int [b t-1], the action that leads into each but the first, into
        which none does; with a camera "motions" [b t-1] and "moved" [b t-1 n] alike."""
        action = F.pad(batch["actions"].long(), (1, 0), value=self.no_action)
        if self.camera is None:
            return Given(action)
        motion = F.pad(batch["motions"].long(), (1, 0), value=self.camera.unknown)
        return Given(action, motion, F.pad(batch["moved"].long(), (0, 0, 1, 0)))

    def hidden(self, tokens: Int[Tensor, "b t n"], given: Given) -> Float[Tensor, "b t p d"]:
        return self.transformer(self._embed(tokens, given))

    def logits(self, tokens: Int[Tensor, "b t n"], given: Given) -> Float[Tensor, "b t n k"]:
        """The naive reference: a whole clip at once."""
        return self.head(self._ungroup(self.hidden(tokens, given))).float()

    def step(self, tokens: Int[Tensor, "b n"], given: Given, past: TimeCache) -> Float[Tensor, "b n k"]:
        """Logits of one frame, of which `tokens` are filled in so far, after those in the past."""
        return self.head(self._ungroup(self._step(tokens, given, past)[:, None])[:, 0]).float()

    def fill(self, given: Given, past: TimeCache, filled: Filled, *rest: Any) -> Filled:
        """A step of MaskGIT: `fill_most_confident` by the logits of `step`. rest: its arguments after these."""
        return fill_most_confident(filled, self.mask_id, self.step(filled.tokens, given, past), *rest)

    def commit(self, tokens: Int[Tensor, "b n"], given: Given, past: TimeCache) -> None:
        """The frame joins the past."""
        self._step(tokens, given, past)
        past.commit()

    def _step(self, tokens: Tensor, given: Given, past: TimeCache) -> Float[Tensor, "b p d"]:
        return self.transformer.step(self._embed(tokens[:, None], given.map(lambda each: each[:, None]))[:, 0], past)

    def forward(self, batch: dict[str, Tensor], progress: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        """batch: "tokens" int [b t n] and what `given` takes -> loss (cross-entropy of masked tokens, and of motions),
        metrics. With a camera it learns from these clips' motions, or from those of other steps, of which "step_tokens"
        [m n] are the frames, "step_motions" and "step_actions" [m PAST+1] the steps before and that to come."""
        tokens, given = batch["tokens"].long(), self.given(batch)
        streams = self._clean_and_masked if self.config.context == "clean" else self._all_masked
        masked, targets, hide = streams(tokens, given)
        # how many tokens are hidden, only a CPU knows without waiting for what it was asked before
        hidden, targets = select_hidden(self._ungroup(masked), targets, hide, static=tokens.device.type != "cpu")
        logits = self.head(hidden).float()
        loss, seen, counts = F.cross_entropy(logits, targets, ignore_index=SHOWN), logits.detach(), targets != SHOWN
        # amax takes a third of argmax's time on a CPU
        right = (seen.gather(-1, targets.clamp(min=0)[:, None])[:, 0] == seen.amax(dim=-1)) & counts
        metrics = {"cross_entropy": loss.detach(), "accuracy": right.sum() / counts.sum()}
        if self.camera is not None and given.motion is not None:
            of_motions = self._loss_of_motions(self.camera, batch, given.motion)
            loss = loss + of_motions
            metrics["motion"] = of_motions.detach()
        return loss, metrics

    def _loss_of_motions(self, camera: Camera, batch: dict[str, Tensor], motion: Int[Tensor, "b t"]) -> Tensor:
        if "step_tokens" in batch:
            frames, motions, actions = (batch[f"step_{name}"].long() for name in ("tokens", "motions", "actions"))
        else:
            frames = batch["tokens"][:, :-1].flatten(0, 1).long()
            motions, actions = (
                F.pad(each, (PAST, 0), value=none).unfold(1, PAST + 1, 1).flatten(0, 1)
                for each, none in ((motion[:, 1:], camera.unknown), (batch["actions"].long(), self.no_action))
            )
        told = camera.logits(History(frames, motions[:, :-1], actions[:, :-1]), actions[:, -1])
        return camera.loss(told, motions[:, -1])

    @torch.no_grad()
    def control(self, batch: dict[str, Tensor]) -> Tensor:
        """What the actions are worth: the loss with random ones less that with the right ones, in nats. The same tokens
        are hidden in both, and whenever it is asked, so that it changes only as the model does."""
        actions = batch["actions"]
        random = torch.randint(self.no_action, actions.shape, generator=torch.Generator().manual_seed(0))
        losses = []
        with torch.random.fork_rng(devices=[actions.device] if actions.device.type == "cuda" else []):
            for choice in (actions, random.to(actions.device)):
                torch.manual_seed(0)
                losses.append(self(batch | {"actions": choice})[0])
        return losses[1] - losses[0]

    def control_metrics(self, batch: dict[str, Tensor]) -> dict[str, float]:
        return {"control": float(self.control(batch))}

    def sample(self, batch: dict[str, Tensor], tokenizer: VideoTokenizer) -> Sample:  # type: ignore[override]
        """The last frame of some clips, all of it masked and guessed in one pass, beside the truth."""
        tokens, given = batch["tokens"][:8], self.given(batch).map(lambda each: each[:8])
        masked = tokens.clone()
        masked[:, -1] = self.mask_id
        guess = torch.cat((tokens[:, :-1], self.logits(masked, given)[:, -1:].argmax(-1)), dim=1)
        shown = (to_uint8(tokenizer.decode(each))[:, -1] for each in (tokens[:, :-1], tokens, guess))
        return Sample({}, grid([*shown]))

    def _all_masked(self, tokens: Tensor, given: Given) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states of frames with masked tokens, what they should tell, and where."""
        rate = torch.empty(len(tokens), 1, 1, device=tokens.device).uniform_(self.config.min_mask, 1)
        hide = torch.rand(tokens.shape, device=tokens.device) < rate
        hide[:, 0] = False
        return self.hidden(tokens.masked_fill(hide, self.mask_id), given), tokens, hide

    def _clean_and_masked(self, tokens: Tensor, given: Given) -> tuple[Tensor, Tensor, Tensor]:
        past, present = tokens[:, :-1], tokens[:, 1:]
        hide = cosine_mask(present)
        twice = given.map(lambda each: torch.cat((each[:, :-1], each[:, 1:]), dim=1))
        if twice.moved is not None:
            twice = twice._replace(moved=self._corrupted(twice.moved))
        entered = self._embed(torch.cat((self._corrupted(past), present.masked_fill(hide, self.mask_id)), dim=1), twice)
        hidden = self.transformer(entered, *two_streams(past.shape[1], tokens.device))
        return hidden[:, past.shape[1] :], present, hide

    def _corrupted(self, tokens: Int[Tensor, "b t n"]) -> Int[Tensor, "b t n"]:
        swap = torch.rand(tokens.shape, device=tokens.device) < self.config.corrupt * torch.rand(
            (*tokens.shape[:2], 1), device=tokens.device
        )
        return torch.where(swap, torch.randint_like(tokens, self.num_codes), tokens)


class Joint(Model):
    """LAM and dynamics as one model (the paper's second phase): the LAM learns from its own loss alone, dynamics sees
    the actions it chose as integers, through which no gradient flows back."""

    def __init__(self, lam: LatentActionModel, dynamics: Dynamics) -> None:
        super().__init__()
        self.lam, self.dynamics = lam, dynamics

    def forward(self, batch: dict[str, Tensor], progress: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        lam_loss, lam_metrics, actions = self.lam.learn(batch, progress)
        loss, metrics = self.dynamics({"tokens": batch["tokens"], "actions": actions}, progress)
        if not self.ready:  # actions mean nothing yet
            loss = 0 * loss
        return loss + lam_loss, metrics | {f"lam_{name}": value for name, value in lam_metrics.items()}

    def sample(self, batch: dict[str, Tensor], tokenizer: VideoTokenizer) -> Sample:  # type: ignore[override]
        shown = self.dynamics.sample(self._with_actions(batch), tokenizer)
        metrics = self.lam.sample(batch, tokenizer).metrics
        return Sample({f"lam_{name}": value for name, value in metrics.items()}, shown.picture)

    def control_metrics(self, batch: dict[str, Tensor]) -> dict[str, float]:
        if not self.ready:
            return {}
        of_lam, of_dynamics = self.lam.control(batch), self.dynamics.control(self._with_actions(batch))
        return {"lam_control": float(of_lam), "control": float(of_dynamics)}

    def _with_actions(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return batch | {"actions": self.lam.infer(self.lam.video(batch))}


def select_hidden(
    hidden: Float[Tensor, "b t n e"], targets: Int[Tensor, "b t n"], hide: Bool[Tensor, "b t n"], static: bool
) -> tuple[Float[Tensor, "m e"], Int[Tensor, " m"]]:
    """Hidden states and targets where tokens are hidden. static: all of them, whose number is known beforehand; those
    that are shown have the target SHOWN, which does not count."""
    if static:
        return hidden.flatten(0, -2), targets.masked_fill(~hide, SHOWN).flatten()
    return hidden[hide], targets[hide]


def cosine_mask(tokens: Int[Tensor, "b t n"]) -> Bool[Tensor, "b t n"]:
    """Which tokens to hide: at each frame's own rate cos(pi/2 u), u uniform, as MaskGIT's schedule meets them."""
    rate = torch.cos(math.pi / 2 * torch.rand(tokens.shape[:2], device=tokens.device))
    noise = torch.rand(tokens.shape, device=tokens.device)
    return (noise < rate[..., None]) | (noise == noise.amin(dim=-1, keepdim=True))  # one at least


def two_streams(t: int, device: torch.device) -> tuple[Int[Tensor, " s"], Bool[Tensor, "s s"]]:
    """Positions and attention along time of clean frames 0..t-1 followed by masked frames 1..t: a clean frame sees the
    clean ones up to itself, a masked frame the clean ones before it and itself."""
    clean = torch.arange(t, device=device)
    causal = torch.ones(t, t, dtype=torch.bool, device=device).tril()
    left = torch.cat((causal, causal))  # masked frame i+1, in row i, sees clean frames 0..i
    right = torch.cat((torch.zeros_like(causal), torch.eye(t, dtype=torch.bool, device=device)))
    return torch.cat((clean, clean + 1)), torch.cat((left, right), dim=1)
