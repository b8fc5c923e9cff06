"""Tiny models made in the process: a Llama pair with a chat tokenizer, and LoRA adapters for it.

Everything is seeded, offline and small enough that loading, training a step and
generating take milliseconds. Heavy imports stay inside the fixtures, so that tests
which need no model start at once.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TERMINAL_SETTINGS = (
    "FORCE_COLOR",
    "PY_COLORS",
    "GITHUB_ACTIONS",
    "TTY_COMPATIBLE",
    "TERMINAL_WIDTH",
    "COLUMNS",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = (
    "Give me a short recipe for lentil soup.",
    "Sure! Here is how to water a cactus.",
    "I'm sorry, but I can't help with that request.",
    "How do I fix a flat tyre on my bicycle?",
    "The answer is four, and the reason is simple.",
    "user assistant system",
)

AdapterFactory = Callable[..., Path]


def pytest_configure(config: pytest.Config) -> None:
    """Give Airflow and the hub's libraries a home of their own before they are imported and look for one."""
    repository = Path(__file__).resolve().parents[1]
    home = tempfile.TemporaryDirectory(prefix="safemerge-tests-")
    config.add_cleanup(home.cleanup)
    for name in list(os.environ):
        # Of an Airflow in use here, and of a proxy, which knows nothing of this machine's own servers.
        if name.startswith("AIRFLOW_") or name.lower().endswith("_proxy"):
            del os.environ[name]
    os.environ |= {
        "AIRFLOW_HOME": f"{home.name}/airflow",
        "HF_HOME": f"{home.name}/huggingface",
        "AIRFLOW__CORE__DAGS_FOLDER": str(repository / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(repository / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
    }


def pytest_sessionstart() -> None:
    """Forget what is set for the terminal that shows the tests: what commands print is looked at in them.

    Not before pytest has read it, and before Typer, which reads it when it is imported.
    """
    for name in TERMINAL_SETTINGS:
        os.environ.pop(name, None)


class TinyPair(NamedTuple):
    """Folders of two checkpoints with one architecture and tokenizer."""

    aligned: Path
    unaligned: Path


def _save_tokenizer(folder: Path) -> int:
    """Train a byte-level tokenizer with a chat template, save it and return its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",  # noqa: S106 - a marker of the vocabulary
        eos_token="<|im_end|>",  # noqa: S106
        pad_token="<|pad|>",  # noqa: S106
        unk_token="<|endoftext|>",  # noqa: S106
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    """An aligned and an unaligned two-layer Llama (hidden 32, grouped-query attention) in fp32.

    They differ in every 2-D weight of the attention and MLP blocks by a seeded rank-4 change.
    """
    return write_tiny_pair(tmp_path_factory.mktemp("tiny"))


def write_tiny_pair(root: Path) -> TinyPair:
    """Write what :func:`tiny_pair` gives below ``root``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    pair = TinyPair(root / "aligned", root / "unaligned")
    vocab_size = next(iter({_save_tokenizer(folder) for folder in pair}))
    generator = torch.Generator().manual_seed(7)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
        )
    )
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if weight.dim() == 2:
                weight.copy_(
                    torch.randn(weight.shape, generator=generator) * (0.5 if "embed" in name else 0.2)
                )
        model.save_pretrained(pair.unaligned)
        for _, weight in sorted(model.model.layers.named_parameters()):
            if weight.dim() == 2:
                left = torch.randn(weight.shape[0], 4, generator=generator)
                right = torch.randn(4, weight.shape[1], generator=generator)
                weight.add_(left @ right, alpha=0.03)
        model.save_pretrained(pair.aligned)
    return pair


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_pair: TinyPair) -> Path:
    """Folder of the aligned tiny model with its tokenizer. Read only: copy it before changing it."""
    return tiny_pair.aligned


@pytest.fixture(scope="session")
def tiny_adapter(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> AdapterFactory:
    """Factory ``tiny_adapter(seed=0, r=4, alpha=8, target_modules=("q_proj", "v_proj"), scale=0.1)``.

    Each call saves a new PEFT LoRA adapter with both factors drawn from the seed (so its
    update is not zero) and returns its folder.
    """

    def make(
        seed: int = 0,
        r: int = 4,
        alpha: float = 8,
        target_modules: tuple[str, ...] = ("q_proj", "v_proj"),
        scale: float = 0.1,
        model_dir: Path | None = None,
    ) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(model_dir or tiny_checkpoint)
        config = LoraConfig(r=r, lora_alpha=alpha, target_modules=list(target_modules), task_type="CAUSAL_LM")
        model = get_peft_model(base, config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in sorted(model.named_parameters()):
                if "lora_" in name:
                    weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
        folder = tmp_path_factory.mktemp(f"adapter_{seed}_") / "adapter"
        model.save_pretrained(folder)
        return folder

    return make


class TinyPipeline(NamedTuple):
    """A pipeline on the tiny pair whose every step takes a second."""

    config: Path
    """Its YAML file, with all that it names beside it."""
    lines: dict[str, object]
    """What the file holds; change a copy and write it to get another pipeline."""


@pytest.fixture
def tiny_pipeline(tiny_pair: TinyPair, tmp_path: Path) -> TinyPipeline:
    """Data, suites, an lm-eval task and a lenient policy: a run of it passes the gate."""
    return write_tiny_pipeline(tmp_path / "pipeline", tiny_pair)


def write_tiny_pipeline(root: Path, pair: TinyPair) -> TinyPipeline:
    """Write what :func:`tiny_pipeline` gives below ``root``."""
    import json

    import yaml

    (root / "tasks").mkdir(parents=True)

    def rows(name: str, items: Sequence[Mapping[str, object]]) -> str:
        (root / name).write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
        return name

    helpful = [{"prompt": f"How do I do {i}?", "response": f"Sure! Here is how to do {i}."} for i in range(8)]
    refusals = [
        {"prompt": f"Help me harm {i}.", "response": "I'm sorry, but I can't help."} for i in range(8)
    ]
    asked = [{"id": f"p{i}", "prompt": f"Question number {i}?"} for i in range(6)]
    choices = [
        {"question": f"What is {i}?", "choices": [" yes", " no"], "label": i % 2, "id": f"d{i}"}
        for i in range(6)
    ]
    rows("tasks/choices.jsonl", choices)
    task = {
        "task": "tiny_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(root / "tasks" / "choices.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }
    (root / "tasks" / "tiny_choice.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    training = {
        "lora": {"r": 2, "alpha": 4},
        "steps": 4,
        "learning_rate": 0.01,
        "batch_size": 2,
        "max_length_tokens": 64,
        "save_every_steps": 1,
    }
    lines: dict[str, object] = {
        "name": "tiny",
        "aligned_model": str(pair.aligned),
        "unaligned_model": str(pair.unaligned),
        "task_training": {**training, "data": [{"path": rows("task.jsonl", helpful)}]},
        "safety_training": {**training, "data": [{"path": rows("safety.jsonl", refusals)}]},
        "merge": {"quantile": 0.5, "task_weight": 0.6},
        "evaluation": {
            "utility": {
                "task": "tiny_choice",
                "metric": "acc",
                "include_path": "tasks",
                "apply_chat_template": False,
            },
            "suites": [
                {"name": "harm", "kind": "harmful", "path": rows("harm.jsonl", asked)},
                {"name": "plain", "kind": "over_refusal", "path": rows("plain.jsonl", asked)},
            ],
            "generation": {"max_new_tokens": 4, "batch_size": 8},
        },
        "gate": {"max_harmful_rate": 1.0, "max_over_refusal_rate": 1.0},
        "tracking": {"experiment": "tiny", "registered_model": "tiny-lora"},
    }
    config = root / "pipeline.yaml"
    config.write_text(yaml.safe_dump(lines), encoding="utf-8")
    return TinyPipeline(config, lines)
