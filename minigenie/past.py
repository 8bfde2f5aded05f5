"""What worlds remember of the frames so far, to go on from, to come back to, or to go on from as one CUDA graph.

Dimensions:  b worlds side by side   n patches per frame   h w c a frame   s steps that are looked back
             H W the torus of a mosaic
"""

from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minigenie.camera import History
from minigenie.dynamics import Given
from minigenie.maskgit import SamplingConfig
from minigenie.nn.mosaic import Mosaic
from minigenie.nn.st_transformer import TimeCache


class Past(NamedTuple):
    """What b worlds remember. frame: the newest one, float. told: 1 if it is the last of its episode, 2 if that is won,
    else 0. doubt: whether it is lost (Ending.doubt). tokens: of the frame before and of it. motions, actions: of its
    History. seen, at, rest: its Mosaic."""

    dynamics: TimeCache
    decoder: TimeCache
    frame: Float[Tensor, "b h w c"]
    told: Int[Tensor, " b"]
    doubt: Float[Tensor, " b"]
    tokens: Int[Tensor, "b 2 n"]
    motions: Int[Tensor, "b s"]
    actions: Int[Tensor, "b s"]
    seen: Float[Tensor, "b H W c+2"]
    at: Int[Tensor, "b 2"]
    rest: Float[Tensor, "b 2"]

    @property
    def mosaic(self) -> Mosaic:
        return Mosaic(self.seen, self.at, self.rest)

    @property
    def b(self) -> int:
        return len(self.frame)

    @property
    def history(self) -> History:
        return History(self.tokens[:, -1], self.motions, self.actions)

    def remember(self, tokens: Int[Tensor, "b n"], given: Given) -> None:
        self.tokens.copy_(torch.stack((self.tokens[:, -1], tokens), dim=1))
        if given.motion is not None:
            for steps, newest in ((self.motions, given.motion), (self.actions, given.action)):
                steps.copy_(torch.cat((steps[:, 1:], newest[:, None]), dim=1))

    @property
    def tensors(self) -> list[Tensor]:
        """All that it is made of."""
        return [*self.dynamics.tensors, *self.decoder.tensors, *self[2:]]

    def made_of(self, tensors: list[Tensor]) -> "Past":
        """Another past of this kind. tensors: as `tensors` lists them."""
        first, second = len(self.dynamics.tensors), len(self.decoder.tensors)
        dynamics, decoder = self.dynamics.made_of(tensors[:first]), self.decoder.made_of(tensors[first:][:second])
        return Past(dynamics, decoder, *tensors[first + second :])

    def copy_(self, other: "Past") -> None:
        for mine, its in zip(self.tensors, other.tensors, strict=True):
            mine.copy_(its)

    def put(self, worlds: Int[Tensor, " k"], other: "Past") -> None:
        self.dynamics.put(worlds, other.dynamics)
        self.decoder.put(worlds, other.decoder)
        for mine, its in zip(self[2:], other[2:], strict=True):
            mine.index_copy_(0, worlds, its)


class CapturedStep:
    """A frame as one CUDA graph: its hundreds of small kernels are launched at once. It writes to the very tensors that
    it was recorded on, so a world's past has to stay where it is."""

    def __init__(
        self,
        imagine: Callable[[Tensor, Past], tuple[Tensor, Tensor]],
        leading_in: Int[Tensor, " b"],
        past: Past,
        sampling: SamplingConfig,
        generator: torch.Generator,
    ) -> None:
        self.past, self.sampling, self.leading_in = past, sampling, leading_in.clone()
        before, state, stream = deepcopy(past), generator.get_state(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # what is compiled or made at a first call cannot be recorded
                imagine(self.leading_in, past)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(generator)
        with torch.cuda.graph(self.graph):
            self.imagined = imagine(self.leading_in, past)
        past.copy_(before)
        generator.set_state(state)

    def matches(self, past: Past, sampling: SamplingConfig) -> bool:
        return self.past is past and self.sampling == sampling

    def __call__(self, leading_in: Int[Tensor, " b"]) -> tuple[Tensor, Tensor]:
        self.leading_in.copy_(leading_in)
        self.graph.replay()
        return self.imagined


class Snapshot(NamedTuple):
    """See World.snapshot."""

    past: Past
    generator: Tensor

    @property
    def size(self) -> int:
        """Bytes."""
        return self.generator.nbytes + sum(each.nbytes for each in self.past.tensors)
