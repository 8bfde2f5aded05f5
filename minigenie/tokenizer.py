"""The video tokenizer of Genie (arXiv:2402.15391, sec. 2.1): an ST-ViViT VQ-VAE, causal in time on both sides.

Dimensions:  b batch   t frames   n patches per frame   h w pixels   c channels
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from minigenie.nn.model import Model, Sample
from minigenie.nn.patches import patch_grid, patchify, to_float, to_uint8, unpatchify
from minigenie.nn.quantize import LOSS_WEIGHT, QuantizerConfig, VectorQuantizer
from minigenie.nn.st_transformer import STConfig, STTransformer, TimeCache
from minigenie.pictures import grid


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """frame_size: height and width in pixels. patch: side of a patch in pixels, dividing both."""

    frame_size: tuple[int, int] = (64, 64)
    patch: int = 4
    encoder: STConfig = field(default_factory=STConfig)
    decoder: STConfig = field(default_factory=STConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)

    def __post_init__(self) -> None:
        patch_grid(self.patch, self.frame_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a frame's tokens."""
        return patch_grid(self.patch, self.frame_size)

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]


class VideoTokenizer(Model):
    """Frames to integers and back: `encode(frames) -> tokens`, `decode(tokens) -> frames`."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        values = config.patch**2 * 3
        self.embed = nn.Linear(values, config.encoder.dim)
        self.encoder_place = nn.Parameter(0.02 * torch.randn(config.num_patches, config.encoder.dim))
        self.encoder = STTransformer(config.encoder, config.grid)
        self.to_code = nn.Linear(config.encoder.dim, config.quantizer.code_dim)
        self.quantizer = VectorQuantizer(config.quantizer)
        self.from_code = nn.Linear(config.quantizer.code_dim, config.decoder.dim)
        self.decoder_place = nn.Parameter(0.02 * torch.randn(config.num_patches, config.decoder.dim))
        self.decoder = STTransformer(config.decoder, config.grid)
        self.to_pixels = nn.Linear(config.decoder.dim, values)
        nn.init.constant_(self.to_pixels.bias, 0.5)

    def _vectors(self, frames: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b t n code"]:
        return self._code(self.encoder(self._embed(frames)))

    def _embed(self, frames: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b t n d"]:
        return self.embed(patchify(frames, self.config.patch) - 0.5) + self.encoder_place

    def _code(self, hidden: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b n code"]:
        vectors = self.to_code(hidden)
        return F.layer_norm(vectors, vectors.shape[-1:])  # unit variance, the scale that the quantizer expects

    def _pixels(self, vectors: Float[Tensor, "b t n code"]) -> Float[Tensor, "b t h w c"]:
        return self._paint(self.decoder(self.from_code(vectors) + self.decoder_place))

    def _paint(self, hidden: Float[Tensor, "b t n d"]) -> Float[Tensor, "b t h w c"]:
        return unpatchify(self.to_pixels(hidden), self.config.patch, self.config.frame_size[0])

    def encode(self, frames: Float[Tensor, "b t h w c"]) -> Int[Tensor, "b t n"]:
        """frames [b t h w c], float in [0, 1] -> tokens [b t n], 0..num_codes-1. Causal in time."""
        return self.quantizer.nearest(self._vectors(frames))

    def decode(self, tokens: Int[Tensor, "b t n"]) -> Float[Tensor, "b t h w c"]:
        """tokens [b t n] -> frames [b t h w c], float, [0, 1] up to overshoot. Causal in time."""
        return self._pixels(self.quantizer.lookup(tokens)).float()

    def encode_next(self, frames: Float[Tensor, "b h w c"], past: TimeCache) -> Int[Tensor, "b n"]:
        """`encode` of the frame that comes after the past, which it joins."""
        hidden = self.encoder.step(self._embed(frames[:, None])[:, 0], past)
        past.commit()
        return self.quantizer.nearest(self._code(hidden))

    def decode_next(self, tokens: Int[Tensor, "b n"], past: TimeCache) -> Float[Tensor, "b h w c"]:
        """`decode` of the frame that comes after the past, which it joins."""
        hidden = self.decoder.step(self.from_code(self.quantizer.lookup(tokens)) + self.decoder_place, past)
        past.commit()
        return self._paint(hidden[:, None])[:, 0].float()

    def forward(self, batch: dict[str, Tensor], progress: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        """batch["frames"]: uint8 [b t h w c] -> loss (reconstruction + codebook + commitment), metrics."""
        frames = to_float(batch["frames"])
        quantized = self.quantizer(self._vectors(frames), progress)
        mse = F.mse_loss(self._pixels(quantized.vectors).float(), frames)
        metrics = {"psnr": -10 * mse.detach().log10(), "commitment": quantized.loss.detach()}
        return mse + LOSS_WEIGHT * quantized.loss, metrics | self.quantizer.usage()

    def sample(self, batch: dict[str, Tensor], tokenizer: Model) -> Sample:
        frames = batch["frames"][:8]
        decoded = to_uint8(self.decode(self.encode(to_float(frames))))
        return Sample({}, grid([frames[:, -1], decoded[:, -1]]))
