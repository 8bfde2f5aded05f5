"""The server of labelling by hand: one page and a few requests. It holds the labels; pages come and go."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
from minigenie.teach.session import Agreement, Session, quick_agreement

PAGE = Path(__file__).with_name("page.html")


def make_app(
    session: Session,
    host: str = "127.0.0.1",
    token: str | None = None,
    ready: Callable[[], Any] = lambda: None,
    allow: Sequence[str] = (),
) -> Starlette:
    """The server of one session; `page_app` says what the rest is."""
    worker = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))  # the page needs the rest
    checks: list[Future[Agreement]] = []  # by the classifier, whenever there are enough new labels

    def check_if_due() -> None:
        if all(check.done() for check in checks) and (labels := session.labels_to_check()):
            checks.append(worker.submit(quick_agreement, session.dataset, labels))

    def state() -> Response:
        done = [check for check in checks if check.done()]
        found = [check.result()._asdict() for check in done if not isinstance(check.exception(), UserError)]
        judging = len(done) < len(checks)
        return JSONResponse({**session.describe(), "agreement": found[-1] if found else None, "judging": judging})

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
            check_if_due()
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
    end = partial(worker.shutdown, cancel_futures=True)
    return page_app(PAGE, routes, check_if_due, end, host, token, ready, allow)


def serve(folder: str, controls: str | None, seed: int, server: ServerSettings) -> None:
    """Label the dataset in `folder` until Ctrl-C. UserError or OSError, one line, if that cannot be."""
    with listen(server.host, server.port) as listening:
        session = Session(Dataset.open(folder), controls, seed)
        run(partial(make_app, session), listening, session.dataset.folder, server)
    counts = ", ".join(f"{entry['count']:,} {entry['name']}" for entry in session.describe()["controls"])
    print(f"{session.dataset.folder / FILE} has {len(session.labels):,} labels: {counts or 'none'}")
