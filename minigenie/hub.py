"""A world on the Hugging Face hub, by its own library and with its own login: a repository that holds what `export`
makes, and a model card."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from minigenie import __version__
from minigenie.errors import UserError
from minigenie.eval.doctor import as_damage, read_report
from minigenie.eval.evaluator import Report
from minigenie.finish import export_world
from minigenie.remote import write_listed

TAGS = ["minigenie", "world-model", "genie"]


def push(
    world: str | Path, name: str, public: bool = False, revision: str | None = None, license: str | None = None
) -> str:
    """Put the world, as World.load takes it, into the repository `name`, user/name, which is made if it is not there;
    private, unless `public`. revision: the branch, made too. license: what the model card says of it, by the hub's own
    short name; without one, what it said before. Returns the repository's address in the browser.

    UserError or OSError, one line, if the world is not finished, or the hub refuses it or cannot be reached."""
    try:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        raise UserError("push needs huggingface_hub; run `pip install 'minigenie[hub]'`") from None
    if get_token() is None:
        raise UserError("you are not logged in to the hub; run `hf auth login`, or set HF_TOKEN")
    api = HfApi(library_name="minigenie", library_version=__version__)
    with TemporaryDirectory(prefix="minigenie-push-") as scratch:
        folder = Path(scratch) / "world"
        export_world(world, folder)
        write_card(folder, name, license)
        with _hub_errors(name):
            if "/" not in name:
                raise HFValidationError(name)
            repository = api.create_repo(name, private=not public, exist_ok=True)
            if revision:
                api.create_branch(name, branch=revision, exist_ok=True)
            message = f"A world, by MiniGenie {__version__}"
            api.upload_folder(repo_id=name, folder_path=folder, revision=revision, commit_message=message)
    return str(repository)


def write_card(folder: Path, name: str, license: str | None) -> None:
    """Put what the hub reads of a model, as YAML, before the README.md in `folder`, with the metrics of its
    report.json."""
    from huggingface_hub import ModelCardData
    from huggingface_hub.repocard import metadata_load, metadata_save

    card = folder / "README.md"
    try:
        said = metadata_load(card) or {} if card.exists() else {}
    except Exception as error:  # YAML's own, or ValueError
        raise UserError(f"the world's README.md begins with damaged YAML ({error}); mend it or remove it") from None
    results = _results(read_report(folder), folder) if (folder / "report.json").exists() else None
    data = ModelCardData(
        license=license or said.get("license"), library_name="minigenie", tags=TAGS,
        model_name=name.rpartition("/")[2] if results else None, eval_results=results,
    )  # fmt: skip
    metadata_save(card, said | data.to_dict())
    write_listed(card, card.read_bytes())


def _results(report: Report, folder: Path) -> list[Any]:
    from huggingface_hub import EvalResult

    with as_damage(folder / "report.json"):
        source, deltas = report["dataset"], report["rollout"]["delta_psnr"]
        t = max((t for t in deltas if int(t) <= 4), key=int)
        metrics = {
            "tokenizer PSNR": report["tokenizer"]["psnr"],
            "tokenizer SSIM": report["tokenizer"]["ssim"],
            f"delta-PSNR, frame {t}": deltas[t]["mean"],
        }
        if control := report.get("control"):
            metrics["control test"] = control["share"]
        return [
            EvalResult(
                task_type="world-model", dataset_type=source["source"], dataset_name=source["source"],
                dataset_split=source["split"], metric_type=metric.lower().replace(", ", "-").replace(" ", "-"),
                metric_name=metric, metric_value=round(float(value), 3),
            )
            for metric, value in metrics.items()
        ]  # fmt: skip


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """What the hub's library raises in here, as one line with the cure."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    refusals = {
        401: "the hub does not know your login; run `hf auth login` again",
        403: f"you may not write to {name} on the hub; take a name of your own, or a token that may write",
        404: f"there is no {name} on the hub, or not for you; check the name, or take one of your own",
    }
    try:
        yield
    except HFValidationError:
        raise UserError(
            f"{name!r} cannot be a name on the hub; give user/name, of letters, digits, -, _ and ."
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise UserError(refusals.get(status, f"the hub refuses {name} ({error}); try again later")) from None
    except Exception as error:  # each way to transfer raises its own
        why = f"{type(error).__name__}: {error}"
        raise OSError(f"cannot push to the hub ({why}); check the network and run the same command again") from None
