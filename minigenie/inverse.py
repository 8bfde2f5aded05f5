"""Inverse dynamics: which control led from one frame to the next? Learnt from a few labels, it labels all the rest.

So that a thousand labels suffice, it is given what need not be learnt: how far the camera went at the steps around this
one, and the frame before moved by as much (minigenie.nn.motion). And it looks where motion leaves most unexplained,
which is where the player is: elsewhere the picture is dimmed. Where left and right are controls, a mirrored clip is
another label.

Dimensions:  b batch   t frames   s steps around one transition   h w c a frame
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from minigenie.nn.model import Model
from minigenie.nn.motion import motion, warp
from minigenie.nn.patches import to_float

SEEN = 64  # pixels of a frame's shorter side, at most
BLUR = 5  # pixels over which the focus is smoothed
LOUD = 3.0  # weight of the unexplained difference as an input
JITTER = 0.1  # pixels, of the measured motion
SMOOTHING = 0.05  # of the labels
PAIRS_BATCH, PAIRS_RATE = 64, 2e-3  # of `fit_pairs`
CHUNK = 256  # pairs looked at together


@dataclass(frozen=True, kw_only=True)
class InverseConfig:
    """controls: their names. motion: whether the camera's motion is seen, of how many steps before and after (past,
    future), or the picture alone. dim: width. dropout: of what the picture shows. held: see `label`, 0 for never; at
    1 none but the likeliest stays."""

    controls: tuple[str, ...] = ()
    motion: bool = True
    past: int = 6
    future: int = 7
    dim: int = 48
    dropout: float = 0.3
    held: float = 0.0

    @property
    def num_actions(self) -> int:
        return len(self.controls)

    @property
    def mirrored(self) -> list[int] | None:
        """Which control each is in a mirror; None if they do not tell left from right."""
        swap = {"left": "right", "right": "left"}
        names = ["-".join(swap.get(part, part) for part in name.split("-")) for name in self.controls]
        known = set(names) == set(self.controls) and tuple(names) != self.controls
        return [self.controls.index(name) for name in names] if known else None


class InverseDynamics(Model):
    """`infer(video) -> actions`, as the latent action model's: the control of each step, 0 to num_actions - 1."""

    focus: Tensor

    def __init__(self, config: InverseConfig, frame_size: tuple[int, int]) -> None:
        super().__init__()
        self.config = config
        self.scale = max(1, min(frame_size) // SEEN)
        h, w = (side // self.scale for side in frame_size)
        dim, steps = config.dim, config.past + 1 + config.future
        self.register_buffer("focus", torch.ones(h, w))
        self.picture = nn.Sequential(
            nn.Conv2d(9, dim // 2, 5, stride=2, padding=2), nn.GELU(),
            nn.Conv2d(dim // 2, dim // 2, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(dim, dim, 3, stride=2, padding=1), nn.GELU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(config.dropout), nn.Linear(16 * dim, dim),
        )  # fmt: skip
        self.motion = nn.Sequential(
            nn.Linear(2 * steps, 2 * dim), nn.GELU(), nn.Dropout(config.dropout / 3),
            nn.Linear(2 * dim, 2 * dim), nn.GELU(),
        ) if config.motion else None  # fmt: skip
        self.head = nn.Linear((3 if config.motion else 1) * dim, config.num_actions)

    @property
    def looks_back(self) -> bool:
        return False

    @property
    def step_context(self) -> tuple[int, int]:
        return self.config.past, self.config.future

    def downscale(self, frames: Float[Tensor, "b h w c"]) -> Float[Tensor, "b y x c"]:
        return rearrange(F.avg_pool2d(rearrange(frames, "b h w c -> b c h w"), self.scale), "b c y x -> b y x c")

    def motions(self, video: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b t-1 2"]:
        """Of the picture, [down, right] in pixels as it is seen here."""
        before, after = (self.downscale(frames.flatten(0, 1)) for frames in (video[:, :-1], video[:, 1:]))
        return motion(before, after).view(len(video), -1, 2)

    @torch.no_grad()
    def fit_focus(self, before: Float[Tensor, "b h w c"], after: Float[Tensor, "b h w c"]) -> None:
        """Set the focus by some pairs of frames: how much of each place motion leaves unexplained, 1 at the most."""
        before, after = self.downscale(before), self.downscale(after)
        left = (after - warp(before, motion(before, after))[0]).abs().mean(-1).mean(0)
        left = F.avg_pool2d(left[None, None], BLUR, 1, BLUR // 2, count_include_pad=False)[0, 0]
        self.focus.copy_(left / left.max().clamp(min=1e-6))

    def logits(
        self, before: Float[Tensor, "b h w c"], after: Float[Tensor, "b h w c"], around: Float[Tensor, "b s 2"]
    ) -> Float[Tensor, "b k"]:
        """around: the motions of the steps around, this one the `past`-th."""
        before, after = self.downscale(before), self.downscale(after)
        unexplained = after - warp(before, around[:, self.config.past])[0]
        seen = torch.cat((before - 0.5, after - 0.5, LOUD * unexplained), dim=-1) * self.focus[..., None]
        picture = self.picture(rearrange(seen, "b h w c -> b c h w"))
        if self.motion is None:
            return self.head(picture)
        return self.head(torch.cat((picture, self.motion(around.flatten(1))), dim=-1))

    @torch.no_grad()
    def infer(
        self, video: Float[Tensor, "b t h w c"], motions: Float[Tensor, "b steps 2"] | None = None
    ) -> Int[Tensor, "b steps"]:
        """Frames, float in [0, 1] -> the likeliest control of each step. motions: as `motions` has them, if they are
        known. Beyond the video's ends nothing moves."""
        return self._step_logits(video, motions).argmax(-1)

    @torch.no_grad()
    def label(
        self, video: Float[Tensor, "b t h w c"], motions: Float[Tensor, "b steps 2"] | None = None
    ) -> Int[Tensor, "b steps"]:
        """As `infer`, for dynamics to learn from. With config.held a control is drawn by its chance, and stays as long
        as it is not much less likely than another: what nobody can tell is then not always told alike. Of a fall, that
        nothing is held, and of none that something is, so that a world made of it falls whatever is held."""
        if not self.config.held:
            return self.infer(video, motions)
        chances = self._step_logits(video, motions).softmax(-1)
        generator = torch.Generator(chances.device).manual_seed(0)
        drawn = torch.multinomial(chances.flatten(0, 1), 1, generator=generator).view(chances.shape[:2])
        for step in range(1, drawn.shape[1]):
            now, before = chances[:, step], drawn[:, step - 1]
            likely = now.gather(-1, before[:, None])[:, 0] >= self.config.held * now.amax(-1)
            drawn[:, step] = torch.where(likely, before, drawn[:, step])
        return drawn

    def _step_logits(
        self, video: Float[Tensor, "b t h w c"], motions: Float[Tensor, "b steps 2"] | None
    ) -> Float[Tensor, "b steps k"]:
        motions = self.motions(video) if motions is None else motions
        moved = F.pad(motions, (0, 0, self.config.past, self.config.future))
        around = moved.unfold(1, self.config.past + 1 + self.config.future, 1).transpose(-1, -2)
        logits = self.logits(video[:, :-1].flatten(0, 1), video[:, 1:].flatten(0, 1), around.flatten(0, 1))
        return logits.view(len(video), video.shape[1] - 1, -1)

    def video(self, batch: dict[str, Tensor]) -> Tensor:
        return to_float(batch["frames"])

    def forward(self, batch: dict[str, Tensor], progress: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        """batch: "frames" uint8 [b 2 h w c], "around" the motions of the steps around these, [b s 2], "controls" int
        [b] -> loss (cross-entropy), metrics."""
        before, after = to_float(batch["frames"]).unbind(1)
        around, controls = batch["around"], batch["controls"]
        if self.training:
            around = around + JITTER * torch.randn_like(around)
            if self.config.mirrored:
                flip = torch.rand(len(controls), device=controls.device) < 0.5
                before, after = (torch.where(flip[:, None, None, None], x.flip(2), x) for x in (before, after))
                around = torch.where(flip[:, None, None], around * around.new_tensor([1, -1]), around)
                controls = torch.where(flip, controls.new_tensor(self.config.mirrored)[controls], controls)
        logits = self.logits(before, after, around).float()
        loss = F.cross_entropy(logits, controls, label_smoothing=SMOOTHING)
        right = (logits.detach().argmax(-1) == controls).float().mean()
        return loss, {"accuracy": right}


# Of a pair of frames and no more: what could be known from it at all, and whether it shows what was asked for.


def fit_pairs(
    pairs: UInt8[Tensor, "n 2 h w c"], controls: Int[np.ndarray, " n"], names: tuple[str, ...], steps: int, seed: int
) -> InverseDynamics:
    """A model that sees a pair of frames alone, learnt in memory. names: of the controls."""
    rng, targets = np.random.default_rng(seed), torch.from_numpy(controls)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, _, height, width, _ = pairs.shape
        model = InverseDynamics(InverseConfig(controls=names, past=0, future=0), (height, width)).train()
        moved = torch.cat([model.motions(to_float(part)) for part in pairs.split(CHUNK)])
        model.fit_focus(*to_float(pairs[:CHUNK]).unbind(1))
        adam = torch.optim.AdamW(model.parameters(), PAIRS_RATE)
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / steps)
        for _ in range(steps):
            some = rng.integers(len(pairs), size=PAIRS_BATCH)
            loss, _ = model({"frames": pairs[some], "around": moved[some], "controls": targets[some]})
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
    return model.eval()


def controls_seen(model: InverseDynamics, pairs: UInt8[Tensor, "n 2 h w c"]) -> Int[np.ndarray, " n"]:
    """The likeliest control of each pair."""
    return torch.cat([model.infer(to_float(part))[:, 0] for part in pairs.split(CHUNK)]).numpy()
