"""A crawler: coroutines fetch pages, threads parse them, and the links that they find become further items.

    python -m examples.crawler

    frontier → fetch → parse → pages
        ↑ ______________|            and the dead letters of fetch → failed

The site is a server that this program starts on the loopback interface, with pages that link to each other, one that is
missing and one that answers only at the second request. A graph has no cycle: the source is a `Frontier` of URLs, to
which `parse` adds the links of a page, and which ends when every URL has been visited. `fetch` is a coroutine function,
so many requests are in flight on one event loop, and `rate` limits how many start per second. A request that fails is
retried; a page that is missing is skipped, and reported as a dead letter.
"""

import asyncio
import queue
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urljoin, urlsplit

from threadloom import DeadLetter, Graph, Rate, Retry, RunStatistics, SkipFailed

POLITE = Rate(200, burst=20)
"""At most 200 requests per second, and 20 at once after a pause."""
LINK = re.compile(r'href="([^"]*)"')


class HttpError(Exception):
    """A response with a status other than 200."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


@dataclass(frozen=True)
class Page:
    """A page and its links."""

    url: str
    size: int
    links: tuple[str, ...]


class Frontier:
    """The URLs to visit, each of them once: the source of the crawl. It ends when no URL is waiting or in flight."""

    def __init__(self, start: str) -> None:
        self._lock = threading.Lock()
        self._urls: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # None: the end
        self._seen: set[str] = set()  # guarded by the lock
        self._open = 1  # URLs that have been added and not been done, and 1 until `done` is called; likewise
        self.done([start])

    def __iter__(self) -> Iterator[str]:
        while (url := self._urls.get()) is not None:
            yield url

    def done(self, links: Sequence[str]) -> None:
        """Record that a URL has been visited, and add those of its links that are new."""
        with self._lock:
            new = [url for url in dict.fromkeys(links) if url not in self._seen]
            self._seen.update(new)
            self._open += len(new) - 1
            ended = not self._open
        for url in new:
            self._urls.put(url)
        if ended:
            self._urls.put(None)

    def abort(self) -> None:
        """End the source if the run is stopped: it may be waiting for a URL."""
        self._urls.put(None)


async def fetch(url: str) -> tuple[str, str]:
    """Return a URL and its content, by a request of HTTP 1.0. Raises HttpError."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(f"GET {parts.path or '/'} HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    status = int(head.split(maxsplit=2)[1])
    if status != 200:
        raise HttpError(status)
    return url, body.decode()


def is_temporary(error: BaseException) -> bool:
    """Return True if the same request may succeed later."""
    return isinstance(error, HttpError) and error.status == 503


def crawl_graph(frontier: Frontier, in_flight: int, rate: Rate) -> Graph:
    """Return the graph of a crawl. Its sink delivers pages, and the dead letters of pages that cannot be fetched."""

    def parse(fetched: tuple[str, str]) -> Page:
        url, text = fetched
        page = Page(url, len(text), tuple(urljoin(url, link) for link in LINK.findall(text)))
        frontier.done(page.links)
        return page

    def failed(letter: DeadLetter) -> DeadLetter:
        frontier.done(())
        return letter

    graph = Graph("crawler")
    skip = SkipFailed(errors=(HttpError, OSError))
    policy = Retry(times=3, first=0.01, errors=is_temporary, then=skip)
    pages = graph.stage(
        "fetch", fetch, after=graph.source("frontier", frontier), concurrency=in_flight, rate=rate, on_error=policy
    )
    parsed = graph.stage("parse", parse, after=pages)
    missing = graph.stage("failed", failed, after=graph.dead_letters(pages))
    graph.sink("pages", after=[parsed, missing])
    return graph


def crawl(start: str, in_flight: int = 16, rate: Rate = POLITE) -> tuple[list[Page], dict[str, str], RunStatistics]:
    """Visit all pages that can be reached. Return them, URL → error of the others, and the statistics."""
    frontier = Frontier(start)
    pages: list[Page] = []
    missing: dict[str, str] = {}
    with crawl_graph(frontier, in_flight, rate).start(resources=[frontier]) as run:
        for found in run:
            if isinstance(found, DeadLetter):
                missing[found.item] = str(found.error)
            else:
                pages.append(found)
        return pages, missing, run.statistics()


@contextmanager
def site(pages: int) -> Iterator[tuple[str, Counter[str]]]:
    """Serve a site with this many pages; yield the address of the first page, and the number of requests per path."""
    requests: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name is that of the base class
            requests[self.path] += 1
            name = self.path.strip("/") or "0"
            if not name.isdigit() or (name == "3" and requests[self.path] == 1):
                self.send_error(503 if name == "3" else 404)
                return
            number = int(name)
            links = [f"/{n or ''}" for n in (2 * number + 1, 2 * number + 2, number // 2) if n < pages]
            links += ["/missing"] if number == 1 else []
            body = "".join(f'<a href="{link}">{link}</a>\n' for link in links).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is that of the base class
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="site")
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", requests
        finally:
            server.shutdown()
            thread.join()


def main(count: int = 300) -> int:
    """Crawl a site of `count` pages, and print what was found; return the number of pages."""
    with site(count) as (start, requests):
        pages, missing, statistics = crawl(start)
    print(f"{len(pages)} pages with {sum(len(page.links) for page in pages)} links, {requests.total()} requests")
    for url, error in missing.items():
        print(f"not fetched: {urlsplit(url).path}: {error}")
    for stage in statistics.values():
        print(
            f"{stage.name:>8}: {stage.items_in} in, {stage.items_out} out, {stage.retried} retried, {stage.skipped} "
            f"skipped, p50 {stage.tasks.p50 * 1e3:.1f} ms"
        )
    print(f"{statistics.elapsed:.2f} s")
    return len(pages)


if __name__ == "__main__":
    main()
