"""The server of labelling by hand: one page and a few requests. It holds the labels; pages come and go."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from minigenie.data.dataset import Dataset
from minigenie.data.labels import FILE
from minigenie.errors import UserError
from minigenie.play.server import listen, page_app, read_json, refusing, run
from minigenie.settings import ServerSettings
from minigenie.teach.agreement import Agreement, quick_agreement
from minigenie.teach.session import Session

PAGE = Path(__file__).with_name("page.html")


class AgreementChecker:
    """Asks the classifier in a thread of its own, whenever there are enough new labels."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.worker = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))  # the page needs the rest
        self.found: Agreement | None = None
        self.task: asyncio.Task | None = None

    @property
    def is_running(self) -> bool:
        return self.task is not None and not self.task.done()

    def check_if_due(self) -> None:
        if not self.is_running and (labels := self.session.labels_to_check()):
            self.task = asyncio.create_task(self._check(labels))

    async def _check(self, labels: Any) -> None:
        with contextlib.suppress(ValueError):  # of one clip
            call = partial(quick_agreement, self.session.dataset, labels)
            self.found = await asyncio.get_running_loop().run_in_executor(self.worker, call)


def make_app(
    session: Session, host: str = "127.0.0.1", token: str | None = None, ready: Callable[[], Any] = lambda: None
) -> Starlette:
    """The server of one session; `page_app` says what the rest is."""
    checker = AgreementChecker(session)

    def state() -> Response:
        found = checker.found and checker.found._asdict()
        return JSONResponse({**session.describe(), "agreement": found, "judging": checker.is_running})

    def picture(request: Request) -> Response:
        try:
            return Response(session.picture(request.path_params["number"]), media_type="image/png")
        except UserError as error:
            raise HTTPException(404, str(error)) from None

    def changing(change: Callable[[dict[str, Any]], None]) -> Callable[[Request], Any]:
        """A request with a JSON object that changes something, and is answered with the new state."""

        async def answer(request: Request) -> Response:
            with refusing("nothing is changed", "nothing is saved"):
                if not isinstance(content := await read_json(request), dict):
                    raise UserError("a request must be a JSON object")
                await run_in_threadpool(change, content)
            checker.check_if_due()
            return state()

        return answer

    routes = [
        Route("/state", lambda _: state()),
        Route("/clip/{number:int}.png", picture),
        Route("/next", lambda _: JSONResponse(session.describe_clip(session.next_clip())), methods=["POST"]),
        Route("/labels", changing(lambda it: session.save(it.get("clip"), it.get("labels"))), methods=["POST"]),
        Route("/undo", changing(lambda it: session.undo(it.get("clip"))), methods=["POST"]),
        Route("/controls", changing(lambda it: session.rename(it.get("controls"))), methods=["POST"]),
    ]
    end = partial(checker.worker.shutdown, cancel_futures=True)
    return page_app(PAGE, routes, checker.check_if_due, end, host, token, ready)


def serve(folder: str, controls: str | None, seed: int, server: ServerSettings) -> None:
    """Label the dataset in `folder` until Ctrl-C. UserError or OSError, one line, if that cannot be."""
    with listen(server.host, server.port) as listening:
        session = Session(Dataset.open(folder), controls, seed)
        run(partial(make_app, session), listening, session.dataset.folder, server)
    counts = ", ".join(f"{entry['count']:,} {entry['name']}" for entry in session.describe()["controls"])
    print(f"{session.dataset.folder / FILE} has {len(session.labels):,} labels: {counts or 'none'}")
