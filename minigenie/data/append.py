"""New videos into a dataset that is there.

They are ingested as a dataset of their own inside of its folder, which is then joined to it: its shards get new names
there, and the manifest that counts them comes last. So the dataset is at all times what it was or what it is to be, and
a killed run goes on when it is run again.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from minigenie.data.dataset import MANIFEST, Dataset
from minigenie.data.duplicates import ThumbnailIndex, thumbnails
from minigenie.data.ingest import LOG, IngestResult, Row, header_of, ingest, read_log, sha256_of_video
from minigenie.data.video import find_videos
from minigenie.errors import UserError
from minigenie.files import to_json, write_atomic
from minigenie.settings import IngestSettings

PART = ".append"


def append(
    paths: str | Path | Iterable[str | Path],
    out: str | Path,
    settings: IngestSettings = IngestSettings(),
    *,
    workers: int = 1,
    ray: str | None = None,
    progress: Callable[[float, int, str], None] = lambda done, total, name: None,
) -> IngestResult:
    """Add those videos to the dataset `out`, made by `ingest` with these settings, that it does not have yet, and what
    is held out of them to `<out>-test`. Takes that repeat footage of the dataset are left out.

    FileNotFoundError if there is no dataset, ValueError, one line, if it was made otherwise; else as `ingest`.
    """
    out, part, paths = Path(out), Path(out) / PART, [paths] if isinstance(paths, str | Path) else list(paths)
    there = Dataset.open(out, verify=False)
    _check_same(there, header_of(settings, ""))
    _finish(out)
    rows = read_log(out / LOG)
    if any(row.frames and not row.sha256 for row in rows):
        raise UserError(f"{out} does not say which files it has, as an earlier MiniGenie made it; make it again")
    have, videos = {row.sha256 for row in rows}, find_videos(paths, settings=settings)
    known = [video for video in videos if _sha256(video) in have]
    new = [video for video in videos if video not in set(known)]
    answer = [Row(video.name, "known", 0, 0, f"{out} has it already") for video in known]
    if new:
        try:
            added = ingest(new, part, settings, workers=workers, ray=ray, progress=progress)
        except FileExistsError:
            raise UserError(
                f"other files were being added to {out}; run that command again first, or delete {part}"
            ) from None
        try:
            manifest = added.dataset.manifest
            _check_same(there, {**manifest, "settings": {"controls": None, **manifest["settings"]}})
            if there.has_actions != added.dataset.has_actions:
                who = (out, "the new files") if there.has_actions else ("the new files", out)
                raise UserError(f"{who[0]} has an action for every frame, {who[1]} not; ingest into another folder")
        except UserError:
            _remove_part(out)
            raise
        copies = set() if settings.keep_duplicates else _copies(there, added.dataset)
        _note_copies(part / LOG, out, added.dataset, copies)
        if added.test_dataset:
            _join_test(Path(f"{out}-test"), added.test_dataset)
        _join(there, added.dataset, copies)
        answer = sorted([*read_log(part / LOG), *(row for row in added.rows if not row.sha256), *answer])
        _finish(out)
    test_out = Path(f"{out}-test")
    return IngestResult(Dataset.open(out), Dataset.open(test_out) if test_out.exists() else None, answer)


def _check_same(dataset: Dataset, header: dict[str, Any]) -> None:
    old, new = ({**each["settings"], **each} for each in (dataset.manifest, header))
    new["frame_size"] = list(new["frame_size"])
    for key in (*header["settings"], "frame_size", "fps"):
        if key != "videos" and old.get(key) != new[key]:
            raise UserError(
                f"{dataset.name} was made with {key} {old.get(key)!r}, not {new[key]!r}; append with the same, or "
                "ingest into another folder"
            )


def _sha256(video: Path) -> str | None:
    with suppress(OSError):  # its row will say so
        return sha256_of_video(video)
    return None


def _copies(there: Dataset, added: Dataset) -> set[int]:
    """Those of the added episodes that mostly repeat footage that is there; none with actions is a mere copy."""
    if added.has_actions:
        return set()
    with tempfile.TemporaryDirectory() as folder:
        index = ThumbnailIndex(Path(folder, "seen"), 0, there.fps)
        for i in range(len(there.episodes)):
            index.add(i, thumbnails(there.episode_frames(i)))
        return {i for i in range(len(added.episodes)) if index.origin(thumbnails(added.episode_frames(i))) is not None}


def _note_copies(log: Path, out: Path, added: Dataset, copies: set[int]) -> None:
    """In the rows of their files, once."""
    rows = []
    for row in read_log(log):
        lengths = [added.episodes[i].length for i in copies if added.episodes[i].source == row.file]
        note = f"{sum(lengths)} frames repeat {out}"
        if lengths and note not in row.reason:
            row = row._replace(
                status="skipped" if row.frames == sum(lengths) else row.status,
                frames=row.frames - sum(lengths), episodes=row.episodes - len(lengths),
                repeated=row.repeated + sum(lengths), reason="; ".join(filter(None, (row.reason, note))),
            )  # fmt: skip
        rows.append(row)
    _write_log(log, rows)


def _write_log(log: Path, rows: list[Row]) -> None:
    write_atomic(log, *(json.dumps(row._asdict()).encode() + b"\n" for row in rows))


def _join_test(test_out: Path, added: Dataset) -> None:
    if test_out.exists():
        return _join(Dataset.open(test_out, verify=False), added, set())
    unready = Path(tempfile.mkdtemp(dir=test_out.absolute().parent, prefix=f".{test_out.name}-"))
    shutil.copytree(added.folder, unready, dirs_exist_ok=True)
    unready.chmod(0o755)
    unready.rename(test_out)


def _join(whole: Dataset, part: Dataset, left_out: set[int]) -> None:
    """All episodes of `part` but some become episodes of `whole`, once."""
    videos, listing = (dataset.manifest["settings"]["videos"] for dataset in (whole, part))
    if listing in videos.split("; "):
        return
    manifest = whole.manifest
    shards, episodes = list(manifest["shards"]), list(manifest["episodes"])
    number = 1 + max(int(re.findall(r"\d+", shard["file"])[-1]) for shard in shards)
    for old, shard in enumerate(part.manifest["shards"]):
        kept = [
            {**episode, "shard": len(shards)}
            for i, episode in enumerate(part.manifest["episodes"])
            if episode["shard"] == old and i not in left_out
        ]
        if not kept:
            continue
        named = dict(shard)
        for kind, field in (("shard", "file"), ("actions", "actions")):
            if shard[field]:
                named[field] = f"{kind}-{number + old:05d}.npy"
                _put(part.folder / shard[field], whole.folder / named[field])
        shards.append(named)
        episodes += kept
    settings = {**manifest["settings"], "videos": f"{videos}; {listing}"}
    (whole.folder / "contact-sheet.png").unlink(missing_ok=True)
    content = {**manifest, "settings": settings, "shards": shards, "episodes": episodes}
    write_atomic(whole.folder / MANIFEST, to_json(content))


def _put(source: Path, path: Path) -> None:
    """The same content under another name: without a copy, where the file system can."""
    path.unlink(missing_ok=True)  # what a killed run left
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)


def _finish(out: Path) -> None:
    """If what was added is in the manifest: note its files, and remove what it was made of."""
    part = out / PART
    if not (part / MANIFEST).exists():
        return
    whole, added = (Dataset.open(folder, verify=False) for folder in (out, part))
    if added.manifest["settings"]["videos"] not in whole.manifest["settings"]["videos"].split("; "):
        return
    rows = read_log(out / LOG)
    have = {row.sha256 for row in rows}
    _write_log(out / LOG, rows + [row for row in read_log(part / LOG) if row.sha256 not in have])
    _remove_part(out)


def _remove_part(out: Path) -> None:
    for folder in (Path(f"{out / PART}-test"), out / PART):
        shutil.rmtree(folder, ignore_errors=True)
