"""The latent action model of Genie (arXiv:2402.15391, sec. 2.1): which of a few actions led from one frame to the next?

An encoder sees the frames up to x_t+1, a bottleneck of `num_actions` codes lets one integer through, a decoder must
predict x_t+1 from the past and that integer. Nobody labels anything: the codes become what helps the prediction most,
which is control. The decoder exists only for training.

With `pairs` (the default) encoder and decoder see one pair of frames instead of the history: the less the decoder knows
of the past, the more the action has to say.

With `relative` (the default, for pixels) an error counts by how little the picture changed at that step. A fall changes
far more of it than a step to the side: by plain error all actions go into telling speeds of falling, and none is left
for left and right.

Dimensions:  b batch   t frames   n patches per frame   d model width   c code width
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from minigenie.errors import UserError
from minigenie.nn.model import Model, Sample
from minigenie.nn.patches import patch_grid, patchify, to_float, to_uint8, unpatchify
from minigenie.nn.quantize import LOSS_WEIGHT, QuantizerConfig, VectorQuantizer
from minigenie.nn.st_transformer import STConfig, STTransformer
from minigenie.pictures import grid
from minigenie.tokenizer import TokenizerConfig

MAX_ACTIONS = 64
STILL = 1e-3  # a mean squared change of less, a PSNR of more than 30 dB, hardly counts as one


@dataclass(frozen=True, kw_only=True)
class LAMConfig:
    """input: what the model sees, "pixels" or the tokenizer's "tokens". patch: side in pixels (with tokens it is the
    tokenizer's). pairs, relative: see the module's docstring. sigmoid: on the decoder's pixels, as in the paper.
    quantizer.num_codes is the number of actions."""

    input: Literal["pixels", "tokens"] = "pixels"
    patch: int = 16
    pairs: bool = True
    relative: bool = True
    sigmoid: bool = False
    encoder: STConfig = field(default_factory=STConfig)
    decoder: STConfig = field(default_factory=STConfig)
    quantizer: QuantizerConfig = field(default_factory=lambda: QuantizerConfig(num_codes=8, code_dim=32, warmup=0.4))

    def __post_init__(self) -> None:
        if self.sigmoid and self.input == "tokens":
            raise UserError("lam.sigmoid is for pixels; with input=tokens leave it false")
        if self.quantizer.num_codes > MAX_ACTIONS:
            raise UserError(
                f"{self.quantizer.num_codes} actions are too many to play with; "
                f"set lam.quantizer.num_codes to at most {MAX_ACTIONS} (6 to 10 work best)"
            )

    @property
    def num_actions(self) -> int:
        return self.quantizer.num_codes


class LatentActionModel(Model):
    """`infer(video) -> actions`, the integers that lead from each frame to the next."""

    def __init__(self, config: LAMConfig, tokenizer: TokenizerConfig) -> None:
        """tokenizer: the config of the one whose frames or tokens this model sees."""
        super().__init__()
        self.config = config
        self.frame_size = tokenizer.frame_size
        pixels = config.input == "pixels"
        patch = config.patch if pixels else tokenizer.patch
        grid = patch_grid(patch, tokenizer.frame_size)
        values = patch**2 * 3 if pixels else tokenizer.quantizer.num_codes
        make_embed = nn.Linear if pixels else nn.Embedding
        self.encoder_embed = make_embed(values, config.encoder.dim)
        if config.pairs:
            self.embed_before = make_embed(values, config.encoder.dim)
        self.encoder_place = nn.Parameter(0.02 * torch.randn(grid[0] * grid[1], config.encoder.dim))
        self.encoder = STTransformer(config.encoder, grid)
        self.to_code = nn.Linear(config.encoder.dim, config.quantizer.code_dim)
        self.quantizer = VectorQuantizer(config.quantizer)
        self.from_code = nn.Linear(config.quantizer.code_dim, config.decoder.dim)
        self.decoder_embed = make_embed(values, config.decoder.dim)
        self.decoder_place = nn.Parameter(0.02 * torch.randn(grid[0] * grid[1], config.decoder.dim))
        self.decoder = STTransformer(config.decoder, grid)
        self.head = nn.Linear(config.decoder.dim, values)

    @property
    def looks_back(self) -> bool:
        """Whether an action depends on more than the two frames that it lies between."""
        return not self.config.pairs

    @property
    def step_context(self) -> tuple[int, int]:
        """Steps before and after that an action depends on, as far as their number is fixed."""
        return 0, 0

    def _model_input(self, video: Tensor) -> Tensor:
        """Frames [b t h w c] as patches [b t n values], or tokens [b t n] as they are; cut into pairs if asked."""
        if self.config.input == "pixels":
            video = patchify(video - 0.5, self.config.patch)
        if self.config.pairs:
            video = rearrange([video[:, :-1], video[:, 1:]], "two b t ... -> (b t) two ...")
        return video

    def _actions(self, seen: Tensor) -> Float[Tensor, "pairs steps c"]:
        if self.config.pairs:  # one picture of both frames: half the patches, and each meets its former self at once
            hidden = self.encoder(self.embed_before(seen[:, :1]) + self.encoder_embed(seen[:, 1:]) + self.encoder_place)
        else:
            hidden = self.encoder(self.encoder_embed(seen) + self.encoder_place)[:, 1:]
        vectors = self.to_code(hidden.mean(dim=2))
        return F.layer_norm(vectors, vectors.shape[-1:])  # unit variance, so that the noise in its place has a scale

    def _predict(self, past: Tensor, actions: Float[Tensor, "pairs steps c"]) -> Tensor:
        hidden = self.decoder_embed(past) + self.decoder_place + self.from_code(actions)[:, :, None]
        predicted = self.head(self.decoder(hidden))
        return predicted.sigmoid() - 0.5 if self.config.sigmoid else predicted

    def _errors(self, predicted: Tensor, seen: Tensor) -> Float[Tensor, "pairs steps"]:
        """Mean squared error of pixels, or cross-entropy of tokens."""
        if self.config.input == "tokens":
            return F.cross_entropy(predicted.movedim(-1, 1).float(), seen[:, 1:], reduction="none").mean(-1)
        return (predicted.float() - seen[:, 1:]).square().mean((-2, -1))

    def _weights(self, seen: Tensor) -> Float[Tensor, "pairs steps"] | float:
        """How much an error counts at each step; 1 on average."""
        if not self.config.relative or self.config.input == "tokens":
            return 1.0
        weights = 1 / ((seen[:, 1:] - seen[:, :-1]).square().mean((-2, -1)) + STILL)
        return weights / weights.mean()

    def infer(self, video: Tensor) -> Int[Tensor, "b steps"]:
        """video: frames [b t h w c], float in [0, 1], or tokens [b t n] -> actions [b t-1], 0..num_actions-1."""
        codes = self.quantizer.nearest(self._actions(self._model_input(video)))
        return codes.view(len(video), -1)

    def video(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["tokens"] if self.config.input == "tokens" else to_float(batch["frames"])

    def forward(self, batch: dict[str, Tensor], progress: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        """batch["frames"] uint8 [b t h w c], or batch["tokens"] [b t n] -> loss (prediction + commitment), metrics."""
        return self.learn(batch, progress)[:2]

    def learn(self, batch: dict[str, Tensor], progress: float) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Loss, metrics, and the actions that `infer` would find, [b t-1]."""
        video = self.video(batch)
        seen = self._model_input(video)
        quantized = self.quantizer(self._actions(seen), progress)
        errors = self._errors(self._predict(seen[:, :-1], quantized.vectors), seen)
        loss, error = (self._weights(seen) * errors).mean(), errors.detach().mean()
        metrics = {"psnr": -10 * error.log10()} if self.config.input == "pixels" else {"cross_entropy": error}
        return (
            loss + LOSS_WEIGHT * quantized.loss,
            metrics | self.quantizer.usage(),
            quantized.codes.view(len(video), -1),
        )

    @torch.no_grad()
    def control(self, batch: dict[str, Tensor]) -> Tensor:
        """How much better the decoder predicts with the inferred action than with a random one: delta-PSNR in dB for
        pixels, nats of cross-entropy for tokens."""
        seen = self._model_input(self.video(batch))
        codes = self.quantizer.nearest(self._actions(seen))
        right, wrong = (
            self._errors(self._predict(seen[:, :-1], self.quantizer.lookup(choice)), seen).mean()
            for choice in (codes, torch.randint_like(codes, self.config.num_actions))
        )
        return 10 * (wrong / right).log10() if self.config.input == "pixels" else wrong - right

    def predict_frames(self, video: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b t-1 h w c"]:
        """The decoder's own view of frames 2..t, for pictures during training. Pixels only."""
        seen = self._model_input(video)
        patches = self._predict(seen[:, :-1], self.quantizer.lookup(self.quantizer.nearest(self._actions(seen))))
        frames = unpatchify(patches + 0.5, self.config.patch, self.frame_size[0])
        return frames.reshape(len(video), -1, *frames.shape[2:])

    def sample(self, batch: dict[str, Tensor], tokenizer: Model) -> Sample:
        """The share of transitions of its rarest and its commonest action, once there are actions."""
        metrics = {}
        if self.ready:
            actions = self.infer(self.video(batch))
            share = torch.bincount(actions.flatten(), minlength=self.config.num_actions) / actions.numel()
            metrics = {"rarest_action": float(share.min()), "commonest_action": float(share.max())}
        if self.config.input == "tokens":
            return Sample(metrics)
        frames = batch["frames"][:8]
        predicted = to_uint8(self.predict_frames(to_float(frames)))
        return Sample(metrics, grid([frames[:, -2], frames[:, -1], predicted[:, -1]]))

    def control_metrics(self, batch: dict[str, Tensor]) -> dict[str, float]:
        return {"control": float(self.control(batch))} if self.ready else {}
