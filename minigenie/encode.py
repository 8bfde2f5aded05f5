"""A dataset as integers: every frame's tokens and the action that leads on from it, computed once.

Dynamics then trains on them alone: no tokenizer or LAM runs in its step, and 10 million frames of 64x64 are 5 GB of
tokens instead of 120 GB of pixels.

The processes of `torchrun` share the work: each encodes every n-th batch into the same file.

Dimensions:  f frames of the whole dataset   b batch   t frames of a piece   n patches per frame
"""

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from minigenie.camera import Camera
from minigenie.data.dataset import Dataset
from minigenie.errors import UserError
from minigenie.files import load_npy, npy_header, parse_json, to_json, write_atomic
from minigenie.inverse import InverseDynamics
from minigenie.lam import LatentActionModel
from minigenie.nn.motion import clip_motions
from minigenie.nn.patches import to_float
from minigenie.nn.st_transformer import TimeCache
from minigenie.runtime import any_rank, barrier, hash_text
from minigenie.tokenizer import VideoTokenizer

BATCH_FRAMES, CUDA_BATCH_FRAMES = 256, 1024
CLIP = 64  # frames of a piece, for a model that does not look back
REMEMBERED = 512  # frames of a piece, where a camera remembers what it saw
MOSAICS, CUDA_MOSAICS = 4, 64  # of them at once
SAVE_EVERY = 30  # seconds
MAKE_AGAIN = "delete it, and it is made again"
Watch = Callable[[int, int], None]


def encode_tokens(
    dataset: Dataset,
    tokenizer: VideoTokenizer,
    context_frames: int,
    path: Path,
    watch: Watch = lambda done, total: None,
) -> np.ndarray:
    """Tokens of every frame, [f n] of the smallest unsigned type, mapped from `path`, which is made if missing.

    A tokenizer with a sense of time sees them as a world does: one after another from the episode's first on, with a
    memory of `context_frames`. A long episode is begun in several places at once, each so far before the first frame
    that counts that what was before makes no difference: every block looks back `context_frames` further."""
    encoder, device = tokenizer.config.encoder, next(tokenizer.parameters()).device
    lead = encoder.num_blocks * (context_frames + 1) if encoder.attend_time else 0  # the cache then is at slot 0 again

    def encode(frames: np.ndarray) -> Tensor:
        if not lead:
            return tokenizer.encode(_load_frames(dataset, frames, device))
        past = TimeCache(tokenizer.encoder, len(frames), context_frames)
        return torch.stack(
            [tokenizer.encode_next(_load_frames(dataset, column, device), past) for column in frames.T], dim=1
        )

    held = -(-lead // 4)  # every block keeps keys and values, which take a quarter of what its feed-forward does
    batches = _batches(dataset, 8 * lead or CLIP, _batch_frames(device), lead=lead, held=held)
    shape = (dataset.num_frames, tokenizer.config.num_patches)
    return _encode_to_file(path, shape, tokenizer.config.quantizer.num_codes, batches, encode, watch)


def encode_actions(
    dataset: Dataset,
    lam: LatentActionModel | InverseDynamics,
    tokens: np.ndarray,
    clip_frames: int,
    path: Path,
    watch: Watch = lambda done, total: None,
    motions: np.ndarray | None = None,
    likeliest: bool = False,
) -> np.ndarray:
    """actions[i] leads from frame i to frame i + 1: uint8 [f], mapped from `path`; an episode's last one is 0. motions:
    those of `encode_motions`, if they are known; inverse dynamics need not measure them then. likeliest: what inverse
    dynamics hold to be true of each step, not labels for dynamics to learn from (`InverseDynamics.label`)."""
    device = next(lam.parameters()).device

    def encode(frames: np.ndarray) -> Tensor:
        if isinstance(lam, LatentActionModel) and lam.config.input == "tokens":
            return lam.infer(torch.from_numpy(tokens[frames].astype(np.int64)).to(device))
        video = _load_frames(dataset, frames, device)
        if isinstance(lam, LatentActionModel):
            return lam.infer(video)
        known = None if motions is None else torch.from_numpy(motions[frames[:, :-1]]).to(device) / lam.scale
        return lam.infer(video, known) if likeliest else lam.label(video, known)

    before, after = lam.step_context
    batches = _batches(dataset, clip_frames, _batch_frames(device), overlap=1, lead=before, tail=after)
    return _encode_to_file(path, (dataset.num_frames,), lam.config.num_actions, batches, encode, watch)


def encode_motions(
    dataset: Dataset, path: Path, device: torch.device, watch: Watch = lambda done, total: None
) -> np.ndarray:
    """How far the picture moves from each frame to the next, [down, right] in pixels: float32 [f 2], an episode's last
    one 0, mapped from `path`."""

    def encode(frames: np.ndarray) -> Tensor:
        return clip_motions(_load_frames(dataset, frames, device))

    batches = _batches(dataset, CLIP, _batch_frames(device), overlap=1)
    return _encode_to_file(path, (dataset.num_frames, 2), None, batches, encode, watch)


def encode_moved(
    dataset: Dataset,
    tokenizer: VideoTokenizer,
    camera: Camera,
    codes: np.ndarray,
    motions: np.ndarray,
    path: Path,
    watch: Watch = lambda done, total: None,
) -> np.ndarray:
    """moved[i] are the tokens of frame i when it has moved as far as frame i + 1 has: [f n] of the smallest unsigned
    type, mapped from `path`. motions: those of `encode_motions`, [f 2], and the camera's codes for them, [f]."""
    device = next(tokenizer.parameters()).device

    def encode(frames: np.ndarray) -> Tensor:
        video = _load_frames(dataset, frames, device)
        code = torch.from_numpy(codes[frames].astype(np.int64)).to(device)
        moved = camera.move(video, code, torch.from_numpy(motions[frames]).to(device))
        alone = [tokenizer.encode(part[:, None]) for part in moved.flatten(0, 1).split(_batch_frames(device))]
        return torch.cat(alone).view(len(video), video.shape[1], -1)

    shape = (dataset.num_frames, tokenizer.config.num_patches)
    at_once = CUDA_MOSAICS if device.type == "cuda" else MOSAICS
    batches = _batches(dataset, REMEMBERED, at_once * REMEMBERED)
    return _encode_to_file(path, shape, tokenizer.config.quantizer.num_codes, batches, encode, watch)


def _batch_frames(device: torch.device) -> int:
    return CUDA_BATCH_FRAMES if device.type == "cuda" else BATCH_FRAMES


def _load_frames(dataset: Dataset, frames: np.ndarray, device: torch.device) -> Tensor:
    """Frames by their numbers [...], counted through all shards: float [... h w c]."""
    seen = torch.from_numpy(dataset.clips(frames.ravel(), 1)).to(device)
    return to_float(seen.view(*frames.shape, *seen.shape[2:]))


def _batches(
    dataset: Dataset, length: int, at_once: int, overlap: int = 0, lead: int = 0, tail: int = 0, held: int = 0
) -> list[np.ndarray]:
    """Every episode in pieces of `length` frames, the next beginning `overlap` before the end of the last, with up to
    `lead` of the episode's frames before each and `tail` after; as many in a batch as hold `at_once` frames. held: how
    many of a piece are in memory at once, 0 for all.

    A batch is int [pieces 4]: of a piece, from which frame of the dataset on how many are read, and from which of these
    on to which they are written. The longest come first, so that those in a batch are about equally long."""
    found = [
        (first + begin, min(end + tail, episode.length) - begin, offset - begin, end - begin - overlap)
        for first, episode in zip(dataset.episode_starts.tolist(), dataset.episodes, strict=True)
        for offset in range(0, episode.length - overlap, length - overlap)
        for begin, end in [(max(0, offset - lead), min(offset + length, episode.length))]
    ]
    pieces, batches = np.array(sorted(found, key=lambda piece: -piece[1]), np.int64).reshape(-1, 4), []
    while len(pieces):
        size = max(1, at_once // (held or int(pieces[0, 1])))
        batches.append(pieces[:size])
        pieces = pieces[size:]
    return batches


@torch.no_grad()
def _encode_to_file(
    path: Path,
    shape: tuple[int, ...],
    below: int | None,
    batches: list[np.ndarray],
    encode: Callable[[np.ndarray], Tensor],
    watch: Watch,
) -> np.ndarray:
    """Make the array at `path` if it is missing, in a file beside it, of which every process fills its share. Notes of
    each say which batches are safely in it. Integers are `below` that, in the smallest type; None for float32."""
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    kind = np.dtype(np.float32) if below is None else np.min_scalar_type(below - 1)
    unfinished, header = path.with_suffix(".part"), npy_header(kind, shape)
    plan = hash_text(json.dumps([str(header), [batch.tolist() for batch in batches]]))

    def begin() -> bool:
        if path.exists():
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (unfinished.exists() and _batches_done(unfinished, plan)):
            _remove_notes(unfinished)
            _reserve(unfinished, header, math.prod(shape) * kind.itemsize)
        return True

    if any_rank(rank == 0 and begin()):
        done = _batches_done(unfinished, plan)
        frames = np.cumsum([int((batch[:, 3] - batch[:, 2]).sum()) for batch in batches]).tolist()
        with open(unfinished, "r+b") as file:  # not mapped: hosts would overwrite each other's part of a page
            saved = time.monotonic()
            mine = range(rank, len(batches), processes)
            for number in mine:
                if number not in done:
                    _write(file, header, batches[number], encode, kind)
                    done.add(number)
                    watch(frames[min(number + processes, len(batches)) - 1], frames[-1])  # as if the others kept pace
                if time.monotonic() - saved > SAVE_EVERY or number == mine[-1]:
                    file.flush()
                    os.fsync(file.fileno())
                    note = to_json({"plan": plan, "done": sorted(done)})
                    write_atomic(path.with_suffix(f".part.{rank}.json"), note)
                    saved = time.monotonic()
        barrier()  # what each had to do is done
        if rank == 0:
            unfinished.replace(path)
    if rank == 0:
        _remove_notes(unfinished)
    barrier()
    return _load(path, shape, below)


def _write(
    file: BinaryIO, header: bytes, pieces: np.ndarray, encode: Callable[[np.ndarray], Tensor], kind: np.dtype
) -> None:
    """Encode pieces, the shorter ones as if their last frame stood still, and write what is theirs."""
    first, length = pieces[:, :1], pieces[:, 1:2]
    values = encode(first + np.minimum(np.arange(length.max()), length - 1)).cpu().numpy().astype(kind)
    for row, (begin, _, start, stop) in zip(values, pieces.tolist(), strict=True):
        file.seek(len(header) + (begin + start) * row[0].nbytes)
        file.write(row[start:stop].tobytes())


def _batches_done(unfinished: Path, plan: int) -> set[int]:
    """Which batches of this plan the notes say are done."""
    done: set[int] = set()
    for note in unfinished.parent.glob(f"{unfinished.name}.*.json"):
        with suppress(OSError, ValueError, TypeError, KeyError):  # it is not there any more, or makes no sense
            values = parse_json(note.read_bytes())
            done |= set(values["done"] if values["plan"] == plan else ())
    return done


def _remove_notes(unfinished: Path) -> None:
    for note in unfinished.parent.glob(f"*{unfinished.name}.*"):
        note.unlink()


def _reserve(path: Path, header: bytes, size: int) -> None:
    """An .npy file of zeros whose room on the disk is sure, so that it is found out before the work."""
    size += len(header)
    try:
        with open(path, "wb") as file:
            file.write(header)
            file.flush()
            os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else file.truncate(size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"cannot write {path}, {size / 1e6:.0f} MB: {error.strerror}; make room and run the same command again",
        ) from None


def load_motions(path: Path, number: int) -> np.ndarray:
    """[number 2], [down, right] in pixels. ValueError, one line, if these are others or none."""
    return _load(path, (number, 2), None)


def _load(path: Path, shape: tuple[int, ...], below: int | None) -> np.ndarray:
    """What was encoded before. ValueError, one line, if it is not of this dataset and this model."""
    array = load_npy(path, MAKE_AGAIN)
    if below is None:
        expected, fits = f"finite float32 {list(shape)}", array.dtype == np.float32 and np.isfinite(array).all()
    else:
        expected, fits = f"{list(shape)} below {below}", array.dtype.kind == "u" and array.max(initial=0) < below
    if array.shape != shape or not fits:
        raise UserError(f"{path} holds {array.dtype} {list(array.shape)}, not {expected}; {MAKE_AGAIN}")
    return array
