"""The server of labelling by hand: one page and a few requests. It holds the labels; pages come and go."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from minigenie.config import parse_json
from minigenie.data.dataset import Dataset
from minigenie.data.labels import FILE
from minigenie.errors import UserError
from minigenie.play.auth import PAGE_HEADERS, AuthMiddleware, error_response
from minigenie.play.server import listen, read_body, run
from minigenie.settings import ServerSettings
from minigenie.teach.agreement import Agreement, quick_agreement
from minigenie.teach.session import Session

PAGE = Path(__file__).with_name("page.html")
MAX_REQUEST_BYTES = 1 << 16  # of a request


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
    """The whole server. token: without it every request is refused. ready: called when it listens."""
    checker = AgreementChecker(session)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        checker.check_if_due()
        ready()
        yield
        checker.worker.shutdown(cancel_futures=True)

    def state() -> Response:
        found = checker.found and checker.found._asdict()
        return JSONResponse(
            {**session.describe(), "agreement": found, "judging": checker.is_running}, headers=PAGE_HEADERS
        )

    def page(_: Request) -> Response:
        return Response(PAGE.read_bytes(), media_type="text/html", headers=PAGE_HEADERS)

    def picture(request: Request) -> Response:
        try:
            return Response(
                session.picture(request.path_params["number"]), media_type="image/png", headers=PAGE_HEADERS
            )
        except ValueError as error:
            return error_response(str(error), 404)

    def next_clip(_: Request) -> Response:
        return JSONResponse(session.describe_clip(session.next_clip()), headers=PAGE_HEADERS)

    def changing(change: Callable[[dict[str, Any]], None]) -> Callable[[Request], Any]:
        """A request with a JSON object that changes something, and is answered with the new state."""

        async def answer(request: Request) -> Response:
            try:
                content = parse_json(await read_body(request, MAX_REQUEST_BYTES))
                if not isinstance(content, dict):
                    raise UserError("a request must be a JSON object")
                await asyncio.get_running_loop().run_in_executor(None, change, content)
            except ClientDisconnect:
                return Response()  # to nobody
            except ValueError as error:
                return error_response(f"nothing is changed: {error}", 400)
            except OSError as error:
                return error_response(f"nothing is saved: {error}", 500)
            checker.check_if_due()
            return state()

        return answer

    def save(content: dict[str, Any]) -> None:
        session.save(content.get("clip"), content.get("labels"))

    routes = [
        Route("/", page),
        Route("/state", lambda _: state()),
        Route("/clip/{number:int}.png", picture),
        Route("/next", next_clip, methods=["POST"]),
        Route("/labels", changing(save), methods=["POST"]),
        Route("/undo", changing(lambda content: session.undo(content.get("clip"))), methods=["POST"]),
        Route("/controls", changing(lambda content: session.rename(content.get("controls"))), methods=["POST"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan, middleware=[Middleware(AuthMiddleware, host=host, token=token)])


def serve(folder: str, controls: str | None, seed: int, server: ServerSettings) -> None:
    """Label the dataset in `folder` until Ctrl-C. UserError or OSError, one line, if that cannot be."""
    with listen(server.host, server.port) as listening:
        session = Session(Dataset.open(folder), controls, seed)
        run(partial(make_app, session), listening, session.dataset.folder, server)
    counts = ", ".join(f"{entry['count']:,} {entry['name']}" for entry in session.describe()["controls"])
    print(f"{session.dataset.folder / FILE} has {len(session.labels):,} labels: {counts or 'none'}")
