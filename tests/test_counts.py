"""Parsing of callgrind profiles. Counting takes minutes and needs valgrind, so it is not tested here."""

from benchmarks.counts import INTERPRETER, KERNELS, OTHERS, classify_object, count_by_object

PROFILE = """\
# callgrind format
version: 1
positions: line
events: Ir

ob=(1) /usr/bin/python3.11
fl=(1) ???
fn=(1) main
16 400
cob=(2) ???
cfn=(2) 0x5000
calls=1 50
16 70000
+2 30

ob=(2)
fn=(2)
50 68000
* 1000
cob=(3) /usr/lib/libm.so.6
cfn=(3) exp
calls=5 7
-3 1000

ob=(3)
fn=(3)
7 1000

totals: 70430
"""


def test_instructions_are_attributed_to_the_executing_object() -> None:
    found = count_by_object(PROFILE.splitlines())
    assert found.total() == 70430
    assert found == {"/usr/bin/python3.11": 430, "???": 69000, "/usr/lib/libm.so.6": 1000}


def test_object_files_are_classified() -> None:
    assert [classify_object(path) for path in ("", "???")] == [KERNELS, KERNELS]
    assert [classify_object(path) for path in ("/usr/bin/python3.11", "/opt/lib/libpython3.12.so.1.0")] == [
        INTERPRETER
    ] * 2
    assert classify_object("/x/numpy/_core/_multiarray_umath.cpython-311-x86_64-linux-gnu.so") == OTHERS
