"""Local tasks of lm-evaluation-harness with the same model through transformers and through ours: equal scores."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.stages.data.made_tokenizers import MADE
from threadloom.stages.config import ConfigError
from threadloom.stages.inference import ChoiceScore, HarnessModel, evaluate_choices
from threadloom.stages.tools.evaluate import harness

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("default"), pytest.mark.timeout(600)]

ROWS = [
    {"prompt": "The cat sat on", "choices": ["the mat", "a plain text", "größer"], "answer": 0},
    {"prompt": "x = ", "choices": ["42", "3.14 and 2026 numbers", " it"], "answer": 1},
    {"prompt": "It's a plain text, we'll see.\n\n" * 12, "choices": ["yes", "no"], "answer": 1},
    {"prompt": "two  spaces  ", "choices": ["déjà vu", "🙂"], "answer": 0},
]
"""The third prompt is longer than the context of 64 tokens."""

TASKS = {
    "tl_choices": """\
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_bytes}]
""",
    "tl_rolling": """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{prompt}}"
metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
""",
    "tl_generate": """\
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["\\n", "e"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the tasks; the harness and its data sets may not use the network."""
    pytest.importorskip("lm_eval")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "0" if name.startswith("T") else "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    for name, content in TASKS.items():
        data = f"dataset_path: json\ndataset_kwargs: {{data_files: {rows}}}\ntest_split: train\n"
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{data}{content}")
    return folder


def made_model(folder: Path, name: str) -> Path:
    """Write a random Llama of transformers with a tokenizer, which begins a text with <s> or with nothing."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    tokenizer = json.loads(MADE[name]())
    begins = name == "llama2"
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=1 + max(*tokenizer["model"]["vocab"].values(), *(t["id"] for t in tokenizer["added_tokens"])),
        hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, initializer_range=0.3, bos_token_id=1 if begins else None,
        eos_token_id=2 if begins else 0,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).eval().save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    texts = {"bos_token": "<s>", "eos_token": "</s>"} if begins else {"eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **texts}))
    return folder


def responses(model: Any, folder: Path) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return the figures of the tasks, and the answers to all requests."""
    evaluator, manager = pytest.importorskip("lm_eval.evaluator"), pytest.importorskip("lm_eval.tasks").TaskManager
    results = evaluator.simple_evaluate(
        model, tasks=list(TASKS), task_manager=manager(include_path=str(folder), include_defaults=False)
    )
    samples = {
        name: [response for sample in sorted(found, key=lambda s: s["doc_id"]) for response in sample["resps"]]
        for name, found in results["samples"].items()
    }
    return results["results"], samples


@pytest.mark.parametrize("name", ["smollm", "llama2"])
def test_scores_and_texts_are_those_of_transformers(name: str, tasks: Path, tmp_path: Path) -> None:
    path = made_model(tmp_path / "model", name)
    theirs = pytest.importorskip("lm_eval.models.huggingface").HFLM(
        pretrained=str(path), device="cpu", dtype="float32", batch_size=2
    )
    expected, their_answers = responses(theirs, tasks)
    opened = harness.register().create_from_arg_string(f"path={path}", {"batch_size": 2, "device": "cpu"})  # type: ignore[attr-defined]
    assert isinstance(opened, HarnessModel)
    found, answers = responses(opened, tasks)
    assert answers["tl_generate"] == their_answers["tl_generate"]
    for [(ours, our_greedy)], [(other, greedy)] in zip(answers["tl_choices"], their_answers["tl_choices"], strict=True):
        assert ours == pytest.approx(other, rel=1e-5)  # sums of log-probabilities that both compute in float32
        assert our_greedy == greedy
    for [ours], [other] in zip(answers["tl_rolling"], their_answers["tl_rolling"], strict=True):
        assert ours == pytest.approx(other, rel=1e-5)
    for task, figures in expected.items():
        for key, value in figures.items():
            wanted = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            assert found[task][key] == wanted, (task, key)

    scores = list[ChoiceScore]()
    by_file = evaluate_choices(path, tasks / "rows.jsonl", write=scores.append)
    for ours_of, key in ((by_file.acc, "acc"), (by_file.acc_norm, "acc_norm"), (by_file.acc_bytes, "acc_bytes")):
        assert ours_of.mean == pytest.approx(expected["tl_choices"][f"{key},none"])
        assert ours_of.error == pytest.approx(expected["tl_choices"][f"{key}_stderr,none"])
    likelihoods = [likelihood.log_likelihood for score in scores for likelihood in score.likelihoods]
    assert likelihoods == pytest.approx([other for [(other, _)] in their_answers["tl_choices"]], rel=1e-5)


def test_results_are_a_table_or_json(tasks: Path, tmp_path: Path) -> None:
    model = harness.register()(made_model(tmp_path / "model", "smollm"))
    names = ["tl_choices", "tl_rolling"]
    results = harness.run_tasks(model, names, examples=0, folder=tasks, limit=2)
    table = harness.results_table(results)
    for part in ("|tl_choices|", "acc_norm", "bits_per_byte"):
        assert part in table
    content = json.loads(harness.results_json(results))
    assert content["tl_choices"]["acc,none"] in (0.0, 0.5, 1.0)
    with pytest.raises(ConfigError, match=r"the name of a task of lm-evaluation-harness in .*, got 'nothing'"):
        harness.run_tasks(model, ["nothing"], examples=None, folder=tasks, limit=None)
