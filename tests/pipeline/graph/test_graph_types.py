"""Tests of the types along edges: mypy rejects a function whose argument does not match its predecessor."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[3]

VALID = """
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Self
from threadloom.pipeline import SKIP
from threadloom.pipeline import Gather
from threadloom.pipeline import Graph
from threadloom.pipeline import InOrder
from threadloom.pipeline import Node
from threadloom.pipeline import Skip
from threadloom.pipeline import per_worker

class Measure:
    def __init__(self, unit: int = 1) -> None: self.unit = unit
    def __enter__(self) -> Self: return self
    def __exit__(self, *error: object) -> None: pass
    def __call__(self, text: str) -> int: return len(text) // self.unit

@contextmanager
def measuring() -> Iterator[Callable[[str], int]]: yield len

def length(text: str) -> int | Skip: return len(text) or SKIP
def total(numbers: list[int]) -> float: return sum(numbers) / 2
def spell(number: float) -> list[str]: return [str(number)]
async def fetch(text: str) -> int | Skip: return SKIP
async def crawl(number: int) -> AsyncIterator[str]: yield str(number)
async def lines(text: str) -> list[str]: return [text]
def letters(text: str) -> Iterator[str]: yield from text
async def watch() -> AsyncIterator[str]: yield ""
def either(item: str | int) -> bytes: return b""

graph = Graph("types")
texts = graph.source("texts", ["a"])
lengths = graph.stage("length", length, after=texts, admission=InOrder(order=lambda item: (item[:1], len(item))))
totals = graph.stage("total", total, after=lengths, gather=Gather(key=lambda item: item % 2, count=2))
words = graph.stage("spell", spell, after=totals, expand=True, when=lambda item: item.is_integer())
measured = graph.stage("measured", per_worker(Measure), after=texts, workers=2)
totalled = graph.stage("totalled", total, after=measured, gather=Gather(count=2))
graph.stage("by the inch", per_worker(partial(Measure, 3)), after=texts)
graph.sink("measures", after=graph.stage("measuring", per_worker(measuring), after=texts))
fetched = graph.stage("fetch", fetch, after=graph.source("watch", watch), concurrency=8)
crawled = graph.stage("crawl", crawl, after=fetched, ordered=True)
spelt = graph.stage("letters", letters, after=graph.stage("lines", lines, after=crawled, expand=True))
graph.stage("letter", length, after=spelt)
parity = graph.route("parity", lambda item: item % 2 == 0, after=lengths, to=(True, False))
even = graph.stage("even", lambda item: item * 2, after=parity[True], ordered=True, workers=2)
odd = graph.stage("odd", str, after=parity[False])
pairs = graph.join("pairs", lambda pair: pair[0] + len(pair[1]), after=(even, odd), keys=(lambda n: n, lambda s: s[:1]))
graph.stage("after pairs", lambda item: item.bit_length(), after=pairs)
triples = graph.join("triples", lambda item: item[2], after=(even, odd, texts))
graph.stage("after triples", length, after=triples)
both: list[Node[str | int]] = [texts, lengths]
out = graph.sink("out", after=graph.stage("either", either, after=both))
with graph.start() as run:
    for item in run.items(out):
        reveal_type(item)
for item in out:
    reveal_type(item)
reveal_type(words)
"""

INVALID = {
    "plain": 'graph.stage("x", length, after=lengths)',
    "after gather": 'graph.stage("x", length, after=totals)',
    "gather of others": 'graph.stage("x", total, after=texts, gather=Gather(count=2))',
    "list without gather": 'graph.stage("x", total, after=lengths)',
    "after expand": 'graph.stage("x", spell, after=words)',
    "acquire": 'graph.stage("x", length, after=texts, acquire=spell)',
    "when": 'graph.stage("x", length, after=texts, when=lambda item: item.due)',
    "expand of one": 'graph.stage("x", length, after=texts, expand=True)',
    "after a class": 'graph.stage("x", length, after=measured)',
    "class after others": 'graph.stage("x", per_worker(Measure), after=lengths)',
    "set-up of others": 'graph.stage("x", per_worker(measuring), after=lengths)',
    "class without per_worker": 'graph.stage("x", Measure, after=texts, workers=2, expand=True)',
    "after a coroutine": 'graph.stage("x", length, after=fetched)',
    "coroutine of others": 'graph.stage("x", fetch, after=lengths)',
    "after an asynchronous generator": 'graph.stage("x", crawl, after=crawled)',
    "after a generator": 'graph.stage("x", total, after=spelt)',
    "after a branch": 'graph.stage("x", length, after=parity[True])',
    "no such key": 'parity["even"]',
    "route of others": 'graph.route("x", length, after=even, to=[1])',
    "after a join": 'graph.stage("x", length, after=pairs)',
    "join of others": 'graph.join("x", lambda pair: pair[1].nothing, after=(even, odd))',
    "keys of others": 'graph.join("x", len, after=(even, odd), keys=(len, len))',
    "no such option": 'graph.stage("x", length, after=texts, worker=2)',
    "after a sink": 'graph.stage("x", length, after=out)',
}


def test_mypy_accepts_valid_and_rejects_invalid_stages(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api")
    program = tmp_path / "program.py"
    program.write_text(VALID + "\n" + "\n".join(INVALID.values()) + "\n", encoding="utf-8")
    report, errors, _ = api.run([str(program), "--config-file", str(ROOT / "pyproject.toml"), "--no-pretty"])
    assert errors == ""
    lines = [line.partition("program.py:")[2] for line in report.splitlines() if "program.py:" in line]
    assert any('note: Revealed type is "builtins.bytes"' in line or '"bytes"' in line for line in lines), report
    assert any("Node[" in line and "str]" in line for line in lines), report
    wrong = {int(line.partition(":")[0]) for line in lines if ": error:" in line}
    first = len(VALID.splitlines()) + 1 + 1
    missed = [name for place, name in enumerate(INVALID) if first + place not in wrong]
    assert not missed, report
    assert min(wrong) >= first, report
