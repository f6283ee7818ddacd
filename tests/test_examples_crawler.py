"""The crawler: every page once, links followed in a cycle, retries, dead letters, and its end when it is stopped."""

from collections import Counter

import pytest

from examples import crawler
from threadloom import Rate, StageFailure

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("in_flight", [1, 8])
def test_every_page_is_fetched_once(in_flight: int) -> None:
    with crawler.site(20) as (start, requests):
        pages, missing, statistics = crawler.crawl(start, in_flight)
    assert {page.url for page in pages} == {start, *(f"{start}{n}" for n in range(1, 20))}
    assert missing == {f"{start}missing": "status 404"}
    # Page 3 answers with 503 at first.
    assert requests == Counter({"/": 1, "/missing": 1, "/3": 2}) + Counter(f"/{n}" for n in range(1, 20) if n != 3)
    assert (statistics["fetch"].retried, statistics["fetch"].skipped) == (1, 1)


def test_requests_keep_to_the_rate() -> None:
    with crawler.site(12) as (start, _):
        pages, missing, statistics = crawler.crawl(start, 8, Rate(100, burst=2))
    # The first two of 13 requests may pass at once, each other one a hundredth of a second after its predecessor.
    assert len(pages) + len(missing) == 13
    assert statistics.elapsed >= (13 - 2) / 100


def test_a_server_that_is_gone_is_an_error() -> None:
    with crawler.site(1) as (start, _):
        pass
    with pytest.raises(StageFailure, match=r"'fetch' .* all 1 items were skipped, .* ConnectionRefusedError"):
        crawler.crawl(start)


def test_a_crawl_that_fails_ends_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crawler, "LINK", None)
    with crawler.site(5) as (start, _), pytest.raises(StageFailure, match="'parse'"):
        crawler.crawl(start)


def test_a_frontier_takes_each_url_once_and_ends_when_all_are_done() -> None:
    frontier = crawler.Frontier("a")
    urls = iter(frontier)
    assert next(urls) == "a"
    frontier.done(["b", "a", "c", "b"])
    assert [next(urls), next(urls)] == ["b", "c"]
    frontier.done(["a"])
    frontier.done(())
    assert list(urls) == []


def test_the_program_prints_its_findings(capsys: pytest.CaptureFixture[str]) -> None:
    assert crawler.main(10) == 10
    shown = capsys.readouterr().out
    assert "10 pages with " in shown
    assert "not fetched: /missing: status 404" in shown
    assert "fetch: 11 in, 10 out, 1 retried, 1 skipped" in shown
