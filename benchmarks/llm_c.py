"""llm.c (github.com/karpathy/llm.c) as a library: its train_gpt2.c, compiled from a clone that the user has.

The flags are those of its Makefile on Linux. A driver includes train_gpt2.c under `TESTING`, as its test_gpt2.c does,
and adds the functions that `benchmarks.peer_llm_c` calls. The weights are handed over in its checkpoint format, version
3: a header of 256 int32, then the tensors in float32 in the order of its `ParameterTensors`.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.model_sizes import Gpt2Sizes

SOURCE = "train_gpt2.c"
COMPILERS = ("clang", "gcc", "cc")
"""Names to look for without the environment variable CC; the first is the default of llm.c's Makefile."""
FLAGS = ("-Ofast", "-march=native", "-fopenmp", "-DOMP")
LIBRARY_FLAGS = ("-shared", "-fPIC", "-fno-semantic-interposition", "-fgnu89-inline", "-DTESTING", "-w")
"""Flags for a library, in which a function may be inlined as in a program."""
MAGIC, VERSION, HEADER = 20240326, 3, 256
PADDING = 128
"""Rows of the token embedding are padded to a multiple of this."""
ORDER = (
    "wte", "wpe", "ln1_weight", "ln1_bias", "qkv_weight", "qkv_bias", "attn_proj_weight", "attn_proj_bias",
    "ln2_weight", "ln2_bias", "fc_weight", "fc_bias", "mlp_proj_weight", "mlp_proj_bias", "lnf_weight", "lnf_bias",
)  # fmt: skip
"""threadloom's names of the tensors, in llm.c's order."""
DRIVER = """
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* Standard output belongs to the replies of the process: messages are kept, and shown if llm.c gives up. */
static char driver_messages[4096];
static size_t driver_used;

static void driver_print(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    if (driver_used < sizeof driver_messages) {
        size_t left = sizeof driver_messages - driver_used;
        driver_used += vsnprintf(driver_messages + driver_used, left, format, arguments);
    }
    va_end(arguments);
}

__attribute__((noreturn)) static void driver_exit(int status) {
    fputs(driver_messages, stderr);
    exit(status);
}

#define printf driver_print
#define exit driver_exit
#include "train_gpt2.c"
#ifdef _OPENMP
#include <omp.h>
#endif

static GPT2 model;

void driver_load(const char *checkpoint, int threads) {
#ifdef _OPENMP
    omp_set_num_threads(threads);
#endif
    gpt2_build_from_checkpoint(&model, checkpoint);
}

float driver_gradients(int *inputs, int *targets, int sequences, int context) {
    gpt2_forward(&model, inputs, targets, sequences, context);
    gpt2_zero_grad(&model);
    gpt2_backward(&model);
    return model.mean_loss;
}

void driver_update(float rate, float beta1, float beta2, float eps, float decay, int number) {
    gpt2_update(&model, rate, beta1, beta2, eps, decay, number);
}

float *driver_gradient_memory(void) { return model.grads_memory; }
size_t driver_parameters(void) { return model.num_parameters; }
"""


class LlmCError(RuntimeError):
    """llm.c cannot be compiled here."""


def find_compiler() -> str:
    """Return the C compiler: $CC, or the first of `COMPILERS` on the path. Raises LlmCError without one."""
    chosen = os.environ.get("CC")
    for name in (chosen,) if chosen else COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    missing = f"CC={chosen}, which is not on the path" if chosen else f"none of {', '.join(COMPILERS)} on the path"
    raise LlmCError(
        f"--peer llm.c needs a C compiler with OpenMP; found {missing}: install one (apt install gcc), or set the "
        "environment variable CC, or leave out --peer llm.c"
    )


def find_source(clone: Path | None) -> Path:
    """Return train_gpt2.c of a clone. Raises LlmCError if it is missing, or older than the checkpoint version 3."""
    if clone is None:
        raise LlmCError(
            "--peer llm.c needs its sources: clone https://github.com/karpathy/llm.c and pass --llm-c with the folder"
        )
    source = clone / SOURCE
    if not source.is_file():
        raise LlmCError(
            f"--llm-c {clone}: expected a clone of https://github.com/karpathy/llm.c with {SOURCE}, "
            f"found {'a folder without it' if clone.is_dir() else 'no folder'}"
        )
    if "padded_vocab_size" not in source.read_text("utf-8", errors="replace"):
        raise LlmCError(
            f"--llm-c {clone}: {SOURCE} reads checkpoints older than version {VERSION}, which this benchmark writes; "
            "update the clone (git pull)"
        )
    return source


def build_library(clone: Path | None, out: Path) -> Path:
    """Compile llm.c into a library in the folder `out`, and return its path. Raises LlmCError."""
    source, compiler = find_source(clone), find_compiler()
    driver, library = out / "driver.c", out / "llm_c.so"
    driver.write_text(DRIVER)
    folder = str(source.parent.absolute())
    command = [compiler, *FLAGS, *LIBRARY_FLAGS, "-I", folder, str(driver), "-lm", "-o", str(library)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        first = "\n".join(done.stderr.splitlines()[:12])
        raise LlmCError(
            f"{source} could not be compiled; the version of llm.c may be another than expected, or the compiler may "
            f"lack OpenMP. {' '.join(command)}\n{first}"
        )
    return library


def compiler_line() -> str:
    """Return the compiler's version and the flags that matter for speed, as text."""
    version = subprocess.run([find_compiler(), "--version"], capture_output=True, encoding="utf-8", check=False)
    return f"{version.stdout.splitlines()[0] if version.stdout else find_compiler()} {' '.join(FLAGS)}"


def write_checkpoint(file: Path, weights: Mapping[str, Any], sizes: Gpt2Sizes) -> None:
    """Write weights under threadloom's names, matrices (layers, in, out), as a checkpoint of llm.c.

    Its matrices are (layers, out, in); rows that pad the token embedding are zero.
    """
    padded = -(-sizes.vocabulary // PADDING) * PADDING
    header = np.zeros(HEADER, "<i4")
    header[:8] = (
        MAGIC, VERSION, sizes.context, sizes.vocabulary, sizes.layers, sizes.heads, sizes.channels, padded,
    )  # fmt: skip
    with file.open("wb") as stream:
        stream.write(header.tobytes())
        for name in ORDER:
            tensor = weights[name]
            stored = tensor.swapaxes(1, 2) if tensor.ndim == 3 else tensor
            stream.write(np.ascontiguousarray(stored, "<f4").tobytes())
            if name == "wte":
                stream.write(bytes(4 * (padded - sizes.vocabulary) * sizes.channels))
