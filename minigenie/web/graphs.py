"""A world as a folder of static files that plays in a browser, without a server.

The world's arithmetic is four ONNX graphs, for one world at a time; what it remembers goes into each and comes out of
each as tensors, so that they can stay on the device:

    begin   a picture -> the state
    give    action, state -> what is given of the next frame: the action, and where there is a camera its motion and the
            last frame moved by it, as tokens
    fill    what is given, tokens filled in so far, state -> those after a step of MaskGIT, and how sure of each
    commit  what is given, the frame's tokens, luck, state -> the frame, where the world knows an end whether it is the
            last (1; 2: and won), the state after it

Dimensions:  n patches of a frame   h w c a frame
"""

from torch import Tensor, nn

from minigenie.dynamics import Given
from minigenie.maskgit import Filled, fill_most_confident
from minigenie.past import Past
from minigenie.world import World


def played_models(world: World) -> list[nn.Module]:
    """Those that a page needs."""
    return [model for model in (world.tokenizer, world.dynamics, world.ending) if model is not None]


class Graph(nn.Module):
    """past: of any one frame, in whose form all of them are."""

    def __init__(self, world: World, past: Past) -> None:
        super().__init__()
        self.world, self.past, self.models = world, past, nn.ModuleList(played_models(world))

    def flat(self, past: Past) -> list[Tensor]:
        """The state: all of a past but what is empty, as the camera's is where there is none."""
        return [tensor for tensor in past.tensors if tensor.numel()]

    def unflat(self, state: list[Tensor]) -> Past:
        rest = iter(state)
        return self.past.made_of([next(rest).clone() if each.numel() else each for each in self.past.tensors])


class Begin(Graph):
    def forward(self, picture: Tensor) -> list[Tensor]:
        return self.flat(self.world.encode_past(picture[None, None]))


class Give(Graph):
    def forward(self, action: Tensor, state: list[Tensor]) -> list[Tensor]:
        past = self.unflat(state)
        given = self.world.next_given(action, past.history, past.frame, past.mosaic)
        return [each.clone() for each in given if each is not None]


class Fill(Graph):
    def forward(
        self,
        given: list[Tensor],
        tokens: Tensor,
        sure: Tensor,
        uniform: Tensor,
        keep: Tensor,
        noise: Tensor,
        temperature: Tensor,
        state: list[Tensor],
    ) -> Filled:
        dynamics, past = self.world.dynamics, self.unflat(state)
        logits, filled = dynamics.step(tokens, Given(*given), past.dynamics), Filled(tokens, sure)
        return fill_most_confident(filled, dynamics.mask_id, logits, uniform, keep, noise, temperature)


class Commit(Graph):
    def forward(self, given: list[Tensor], tokens: Tensor, luck: Tensor, state: list[Tensor]) -> list[Tensor]:
        past = self.unflat(state)
        frame = self.world.commit(tokens, Given(*given), past, luck)[0]
        over = [past.told.byte()] if self.world.ending else []
        return [frame, *over, *self.flat(past)]
