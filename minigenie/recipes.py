"""What to train, by name. A recipe is a function that returns a whole, frozen config; a variant replaces
some of it."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import torch
from torch import nn

from minigenie.config import override, to_dict
from minigenie.dynamics import DynamicsConfig
from minigenie.ending import EndingConfig
from minigenie.errors import UserError
from minigenie.finish import count_parameters
from minigenie.lam import LAMConfig
from minigenie.maskgit import SamplingConfig
from minigenie.nn.model import Model
from minigenie.nn.quantize import QuantizerConfig
from minigenie.nn.st_transformer import Recompute, STConfig, STTransformer
from minigenie.optim import OptimConfig
from minigenie.pipeline import Recipe
from minigenie.settings import RecipeSettings
from minigenie.tokenizer import TokenizerConfig
from minigenie.train import ENDLESS, Execution, FitConfig


def tiny() -> Recipe:
    """64x64 at patch 8 on 2 CPU cores: the whole pipeline in under 10 minutes. docs/results.md has the experiments."""
    optim = OptimConfig(
        optimizer="muon", lr=2e-3, muon_lr=0.02, betas=(0.9, 0.95), warmup=20, decay="late", final_lr=0.05
    )
    of_lam = replace(optim, muon_decay=0.0, decay="linear")
    often = Execution(sample_every=100, save_every=100)
    fit = FitConfig(steps=1_000, batch_size=32, clip_frames=8, optim=optim, execution=often)
    narrow = STConfig(num_blocks=2, dim=128, num_heads=4)
    return Recipe(
        # Without an encoder network a patch's token depends on that patch alone: what stands still keeps its token.
        tokenizer=TokenizerConfig(
            patch=8,
            encoder=replace(narrow, num_blocks=0, attend_time=False),
            decoder=replace(narrow, num_blocks=4, attend_time=False),
            quantizer=QuantizerConfig(num_codes=1024, code_dim=32, warmup=0.15),
        ),
        tokenizer_fit=replace(fit, clip_frames=1),
        lam=LAMConfig(
            patch=16,
            encoder=replace(narrow, attend_time=False),
            decoder=replace(narrow, num_blocks=1, attend_time=False),
            quantizer=QuantizerConfig(num_codes=8, code_dim=32, warmup=0.4),
        ),
        lam_fit=replace(fit, steps=800, batch_size=64, clip_frames=2, optim=of_lam),
        dynamics=DynamicsConfig(group=2, transformer=STConfig(num_blocks=4, dim=192, num_heads=6), motions=256),
        dynamics_fit=replace(fit, steps=3_000, batch_size=4, clip_frames=8, optim=replace(optim, lr=4e-3)),
        ending=EndingConfig(dim=64, lost=48),
        sampling=SamplingConfig(steps=1, temperature=0.0, choice_noise=0.0),
        context_frames=7,
    )


def laptop() -> Recipe:
    """Full-colour CoinRun on a laptop's CPU overnight: patch 4, since a code for 8x8 pixels cannot hold its looks, four
    tokens to a position of dynamics, so that a frame is 64 positions, a LAM that sees steps of a pixel, and a camera
    that remembers."""
    recipe = tiny()
    return replace(
        recipe,
        tokenizer=replace(
            recipe.tokenizer,
            patch=4,
            decoder=replace(recipe.tokenizer.decoder, num_blocks=2),
            quantizer=replace(recipe.tokenizer.quantizer, num_codes=2048),
        ),
        tokenizer_fit=replace(
            recipe.tokenizer_fit, steps=4_000, batch_size=8, execution=Execution(sample_every=500, save_every=500)
        ),
        lam=replace(recipe.lam, patch=8),
        lam_fit=replace(recipe.lam_fit, steps=3_300, batch_size=32),
        dynamics=replace(recipe.dynamics, memory=64),
        dynamics_fit=replace(
            recipe.dynamics_fit, steps=20_000, batch_size=2, execution=Execution(sample_every=1_000, save_every=100)
        ),
        sampling=SamplingConfig(steps=1, temperature=0.0, choice_noise=0.0),
    )


def coinrun() -> Recipe:
    """The case study for one 16 GB GPU (estimated, not yet run): the seed's rows (16 frames, patch 4, 1024 codes, 8
    actions, dynamics 12 x 512), a LAM on pairs, a clean context."""
    optim = OptimConfig(lr=1e-4, betas=(0.9, 0.95), warmup=1000, decay="late", final_lr=0.0)
    parts = Execution(part=4, compile=True)
    fit = FitConfig(steps=100_000, batch_size=48, clip_frames=16, optim=optim, execution=parts)
    return Recipe(
        tokenizer=TokenizerConfig(quantizer=QuantizerConfig(num_codes=1024, code_dim=32, warmup=0.02)),
        tokenizer_fit=fit,
        lam=LAMConfig(
            encoder=STConfig(num_blocks=4, attend_time=False), decoder=STConfig(num_blocks=4, attend_time=False)
        ),
        lam_fit=replace(fit, steps=30_000, batch_size=256, clip_frames=2, execution=replace(parts, part=256)),
        dynamics=DynamicsConfig(transformer=STConfig(num_blocks=12)),
        dynamics_fit=replace(fit, steps=100_000, batch_size=36, execution=replace(parts, part=3)),
        ending=EndingConfig(dim=64, lost=48),
        sampling=SamplingConfig(steps=25),
    )


def speedrun() -> Recipe:
    """`laptop` in nine minutes on one large GPU: a wider decoder and dynamics, clips of 16 frames, larger batches,
    steps without end, so that --max-minutes decides. Two CPU cores play what comes of it."""
    recipe = laptop()
    narrow = STConfig(num_blocks=4, dim=192, num_heads=3, attend_time=False)
    optim = replace(recipe.tokenizer_fit.optim, warmup=100)
    parts = Execution(compile=True, sample_every=1_000, save_every=2_000)
    fit = FitConfig(steps=ENDLESS, batch_size=256, clip_frames=1, optim=optim, execution=parts)
    return replace(
        recipe,
        tokenizer=replace(
            recipe.tokenizer,
            encoder=replace(narrow, num_blocks=0),
            decoder=narrow,
            quantizer=replace(recipe.tokenizer.quantizer, num_codes=4096),
        ),
        tokenizer_fit=fit,
        lam_fit=replace(recipe.lam_fit, steps=ENDLESS, batch_size=256, execution=replace(parts, compile=False)),
        dynamics=replace(recipe.dynamics, transformer=STConfig(num_blocks=6, dim=320, num_heads=5)),
        dynamics_fit=replace(fit, batch_size=32, clip_frames=16, optim=replace(optim, lr=4e-3)),
        # tokens are kept in nearly any order: by confidence, that a wall goes on would come before that it ends
        sampling=SamplingConfig(steps=2, temperature=1.0, choice_noise=10.0),
        context_frames=15,
        shares=(0.28, 0.05, 0.67),
    )


def pocket() -> Recipe:
    """`speedrun` for a web page: half the codes and a quarter of the dynamics, a world of 12 MB."""
    recipe = speedrun()
    tokenizer, dynamics = recipe.tokenizer, recipe.dynamics
    return replace(
        recipe,
        tokenizer=replace(
            tokenizer,
            decoder=replace(tokenizer.decoder, num_blocks=3),
            quantizer=replace(tokenizer.quantizer, num_codes=2048),
        ),
        dynamics=replace(dynamics, transformer=replace(dynamics.transformer, num_blocks=4, dim=192, num_heads=3)),
        sampling=SamplingConfig(steps=2, temperature=0.7, choice_noise=0.7),  # as its worlds were measured
    )


def paper() -> Recipe:
    """Genie's CoinRun case study, appendix F (arXiv:2402.15391), to the letter where it speaks.

    It gives neither the LAM's patch (16 here, as for its platformers) nor the weights of the losses. Our own: codes are
    placed by k-means and revived, latents have unit variance, positions are rotary.
    """
    gradient = QuantizerConfig(num_codes=1024, code_dim=32, codebook="gradient")
    adamw = OptimConfig(lr=3e-4, betas=(0.9, 0.9), weight_decay=1e-4, warmup=10_000, decay="constant")
    second = replace(adamw, lr=3e-5, warmup=5_000, decay="cosine", final_lr=0.1)
    tokenizer_fit = FitConfig(
        steps=300_000, batch_size=48, clip_frames=16, optim=adamw, execution=Execution(part=4, compile=True)
    )
    dynamics_fit = replace(
        tokenizer_fit, steps=200_000, batch_size=36, optim=second, execution=Execution(part=4, compile=True)
    )
    return Recipe(
        tokenizer=TokenizerConfig(patch=4, quantizer=gradient),
        tokenizer_fit=tokenizer_fit,
        lam=LAMConfig(patch=16, pairs=False, relative=False, sigmoid=True, quantizer=replace(gradient, num_codes=6)),
        lam_fit=dynamics_fit,
        dynamics=DynamicsConfig(transformer=STConfig(num_blocks=12), context="masked", min_mask=0.5),
        dynamics_fit=dynamics_fit,
        joint=True,
        sampling=SamplingConfig(steps=25, temperature=1.0),
    )


MOST_TOKENS, FEWEST_POSITIONS, MOST_POSITIONS = 1024, 48, 256  # of a frame, see `fitted`
RECIPES = {
    "tiny": tiny, "laptop": laptop, "coinrun": coinrun, "speedrun": speedrun, "pocket": pocket, "paper": paper,
}  # fmt: skip


def recipe_named(name: str) -> Recipe:
    if name not in RECIPES:
        raise UserError(f"recipe {name!r} does not exist; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()


def fitted(recipe: Recipe, frame_size: tuple[int, int]) -> Recipe:
    """The recipe for frames of any height and width: patches and groups that fill them, as like its own as can be, with
    at most 1,024 tokens and 48 to 256 positions of dynamics a frame, fewer only if it is small. ValueError if there are
    none."""
    if frame_size == recipe.tokenizer.frame_size:
        return recipe
    height, width = frame_size
    sides = [side for side in range(1, math.gcd(height, width) + 1) if height % side == 0 and width % side == 0]

    def squares(side: int) -> int:
        return height * width // side**2

    def unlike(side: int, wanted: int) -> float:
        return abs(math.log(side / wanted))

    def cost(patch: int, group: int) -> tuple[int, float, float]:
        few = max(0, FEWEST_POSITIONS - squares(patch * group))
        return few, unlike(patch, recipe.tokenizer.patch), unlike(group, recipe.dynamics.group)

    pairs = [
        (patch, place // patch)
        for patch, place in product(sides, sides)
        if place % patch == 0 and squares(patch) <= MOST_TOKENS and squares(place) <= MOST_POSITIONS
    ]
    if not pairs:
        raise UserError(
            f"frames of {height}x{width} do not split into squares, few enough for a world; ingest with a --size whose "
            "sides are multiples of 16"
        )
    patch, group = min(pairs, key=lambda pair: cost(*pair))
    seen = min(
        (side for side in sides if squares(side) <= MOST_POSITIONS), key=lambda side: unlike(side, recipe.lam.patch)
    )
    return replace(
        recipe,
        tokenizer=replace(recipe.tokenizer, frame_size=frame_size, patch=patch),
        lam=replace(recipe.lam, patch=seen),
        dynamics=replace(recipe.dynamics, group=group),
    )


IDLE: dict[str, tuple[Callable[[Recipe], bool], str]] = {  # fields that change nothing, and when
    "dynamics.corrupt": (lambda recipe: recipe.dynamics.context == "masked", "dynamics.context=masked"),
    "dynamics.min_mask": (lambda recipe: recipe.dynamics.context == "clean", "dynamics.context=clean"),
    "ending_fit": (lambda recipe: "ending" not in recipe.models, "ending.dim=0 and ending.lost=0"),
    "lam.patch": (lambda recipe: recipe.lam.input == "tokens", "lam.input=tokens"),
    "lam_fit": (lambda recipe: recipe.joint, "joint, which trains as dynamics_fit says"),
}


def adjusted(settings: RecipeSettings, frame_size: tuple[int, int] | None = None) -> Recipe:
    """The recipe, with what is to change of it. frame_size: of the dataset, if not the recipe's own. ValueError, one
    line, if that cannot be, or would change nothing."""
    recipe = recipe_named(settings.recipe)
    recipe = override(fitted(recipe, frame_size or recipe.tokenizer.frame_size), settings.set)
    recipe = replace(recipe, joint=recipe.joint or settings.joint)
    for field in (assignment.partition("=")[0].strip().replace("-", "_") for assignment in settings.set):
        for idle, (condition, reason) in IDLE.items():
            if (field == idle or field.startswith(f"{idle}.")) and condition(recipe):
                raise UserError(f"{field} does nothing with {reason}; leave it out")
    execution = {name: getattr(settings, name) for name in ("save_every", "precision")}
    execution = {name: value for name, value in execution.items() if value is not None}
    for name in ("tokenizer_fit", "lam_fit", "dynamics_fit", "ending_fit"):
        fit = getattr(recipe, name)
        steps = fit.steps if settings.max_steps is None else min(fit.steps, settings.max_steps)
        fit = replace(fit, steps=steps, execution=replace(fit.execution, **execution))
        recipe = replace(recipe, **{name: fit})
    seed = recipe.seed if settings.seed is None else settings.seed
    return replace(recipe, seed=seed)


def describe(recipe: Recipe) -> str:
    """The resolved config; for each model its parameters, and an estimate of the memory that a training step takes."""
    with torch.device("meta"):
        models: dict[str, Model] = {name: getattr(recipe, f"make_{name}")() for name in recipe.models}
    tokens, positions = recipe.tokenizer.num_patches, recipe.tokenizer.num_patches // recipe.dynamics.group**2
    cut = f"a frame is {tokens} patches of {recipe.tokenizer.patch} pixels, {positions} positions of dynamics"
    lines, together = [json.dumps(to_dict(recipe), indent=1), "", cut], 0.0
    for name, model in models.items():
        joint = recipe.joint and name in ("lam", "dynamics")
        fit: FitConfig = recipe.dynamics_fit if joint else getattr(recipe, f"{name}_fit")
        size = _step_bytes(recipe, name, model, fit) / 2**30
        together += size * joint
        lines.append(
            f"{name:<10} {count_parameters(model) / 1e6:8.2f} M parameters, {fit.steps:,} steps of {fit.batch_size} x "
            f"{fit.clip_frames} frames, about {size:.1f} GiB ({len(fit.parts()[-1])} clips at a time)"
        )
    if recipe.joint:
        lines.append(f"{'together':<10} lam and dynamics, about {together:.1f} GiB")
    return "\n".join(lines)


def _step_bytes(recipe: Recipe, name: str, model: Model, fit: FitConfig) -> float:
    """Weights, gradients and AdamW's two moments in float32, the weights in bfloat16, what the transformers keep for
    the backward pass, and logits of dynamics in float32, as they are, normalised, and their gradient."""
    clips, frames, streams = len(fit.parts()[-1]), fit.clip_frames, 1
    if name == "dynamics" and recipe.dynamics.context == "clean":
        frames, streams = frames - 1, 2
    if name == "lam" and recipe.lam.pairs:
        frames -= 1
    logits = 12 * clips * frames * recipe.tokenizer.num_patches * recipe.tokenizer.quantizer.num_codes
    kept = sum(_kept_bytes(stack, clips, streams * frames, fit.execution.recompute) for stack in model.stacks)
    return 18 * count_parameters(model) + kept + logits * (name == "dynamics")


def _kept_bytes(transformer: STTransformer, clips: int, frames: int, recompute: Recompute) -> float:
    """Bytes that autograd keeps for the backward pass in bfloat16, counted on tensors without data, for which attention
    keeps its scores, as a fused kernel does not; and of what is computed again, one block's."""
    transformer.bfloat16()
    patches, blocks = transformer.grid[0] * transformer.grid[1], max(1, transformer.config.num_blocks)
    sizes: dict[Recompute, int] = {}
    for how in {"nothing", recompute}:
        seen: dict[int, int] = {}

        def note(tensor: torch.Tensor, seen: dict[int, int] = seen) -> torch.Tensor:
            if not isinstance(tensor, nn.Parameter):
                seen[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
            return tensor

        transformer.set_recompute(how)
        with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            x = torch.zeros(clips, frames, patches, transformer.config.dim, dtype=torch.bfloat16, requires_grad=True)
            kept = transformer(x)
        del kept
        sizes[how] = sum(seen.values())
    return sizes[recompute] + (sizes["nothing"] - sizes[recompute]) / blocks
