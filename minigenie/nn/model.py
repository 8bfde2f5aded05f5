"""What a model is to those who train, measure and play it.

Dimensions:  b batch   t frames   h w c a frame
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from minigenie.nn.quantize import VectorQuantizer
from minigenie.nn.st_transformer import STTransformer


class Sample(NamedTuple):
    """What a model shows of itself while it trains: numbers, and a picture uint8 [h w 3] or None."""

    metrics: dict[str, float]
    picture: np.ndarray | None = None


class Model(nn.Module):
    """`loss, metrics = model(batch, progress)`. batch: tensors of b clips, by name. progress: 0 to 1 of training."""

    @property
    def stacks(self) -> list[STTransformer]:
        """Its transformers."""
        return [part for part in self.modules() if isinstance(part, STTransformer)]

    @property
    def quantizers(self) -> list[VectorQuantizer]:
        return [part for part in self.modules() if isinstance(part, VectorQuantizer)]

    @property
    def ready(self) -> bool:
        """Whether all of its codes are placed, and so mean something."""
        return all(part.ready for part in self.quantizers)

    def after_step(self) -> None:
        """Learn what no gradient teaches. Called after each step of the optimizers."""
        for part in self.quantizers:
            part.update_codebook()

    def sample(self, batch: dict[str, Tensor], tokenizer: "Model") -> Sample:
        """Of a batch. tokenizer: turns tokens into pictures."""
        return Sample({})

    def control_metrics(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """What actions are worth to it, as "control"; nothing if it takes none, or has not found them yet."""
        return {}
