"""A program that opens models with the installed transformers, and saves what they compute: IDS.npy FOLDER...

It imports nothing of the project, so that it runs in the environment of another version.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def opened(folder: Path, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Return the tensors of a model in float32, by name, and its logits in float64 under the name `logits`."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, torch_dtype="auto")
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    tensors = {name: tensor.float().numpy().copy() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        return tensors | {"logits": model.double().eval()(torch.from_numpy(ids)).logits.numpy()}


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        found = opened(Path(argument), np.load(sys.argv[1]))
        np.savez(f"{argument}.npz", **found)  # type: ignore[arg-type]
