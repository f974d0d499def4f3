"""Models of transformers by the path of a folder: tiny ones, made here, with weights drawn from a seed."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch

from bezoar.errors import ConfigError
from bezoar.models import LoRA, built, make_model
from bezoar.models.files import kept
from bezoar.updates import client_gradients
from bezoar.updates.dense import DenseUpdates
from bezoar.updates.ghost import GhostUpdates
from tests.updates.test_ghost_models import tokens
from tests.updates.test_gradients import check, losses

transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

EVEN = torch.arange(8) // 2
CHARACTERS = tuple(string.ascii_lowercase[:7])


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    # Read once, when it is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def configured(kind: str, **options: Any) -> Any:
    if kind == "gpt2":
        small = {"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 300, "n_positions": 16}
        return transformers.GPT2Config(**{**small, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, **options})
    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"num_key_value_heads": 1, "vocab_size": 300, "max_position_embeddings": 16}
    return transformers.LlamaConfig(**{**small, **options})


def folder(path: Path, kind: str, **options: Any) -> str:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(configured(kind, **options))
    model.save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_it_is_the_model_of_the_folder(kind: str, tmp_path: Path) -> None:
    repo = folder(tmp_path, kind)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    model = make_model("huggingface", (6,), 7, 0, repo=repo, tokens="ids").eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(repo).eval()
    x = tokens(5, 6, 7)
    torch.testing.assert_close(model(x), theirs(input_ids=x).logits[:, -1, :7])
    assert model(x).dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "targets"), [("gpt2", ("c_attn", "mlp.c_fc")), ("llama", ("q_proj", "v_proj", "down_proj"))]
)
def test_adapters_go_into_its_layers_and_have_client_gradients(
    kind: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    repo = folder(tmp_path, kind)
    model = make_model("huggingface", (6,), 7, 0, repo=repo, tokens="ids")
    # Llama computes its norms and rotations in float32, whatever its weights are.
    found = built(model.double() if kind == "gpt2" else model, lora=LoRA(targets, rank=2, alpha=4.0))
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in found.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draws))
    assert len(found.facts["adapters"]) == 2 * len(targets)
    assert isinstance(check(found.model, tokens(8, 6, 7), EVEN), GhostUpdates)
    state, _ = kept(found.model)
    assert all("lora_" in name for name in state)


def test_adapters_are_those_of_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    repo, targets = folder(tmp_path, "gpt2"), ["c_attn", "c_fc"]
    mine = built(
        make_model("huggingface", (6,), 7, 0, repo=repo, tokens="ids"), lora=LoRA(tuple(targets), rank=2, alpha=6.0)
    ).model.eval()
    with torch.no_grad():
        for name, parameter in mine.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=targets, fan_in_fan_out=True)
    peer = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(repo), config).eval()
    tensors = {name.replace("model.", "base_model.model.", 1): value for name, value in kept(mine)[0].items()}
    assert not peft.set_peft_model_state_dict(peer, tensors).unexpected_keys
    x = tokens(5, 6, 7)
    torch.testing.assert_close(mine(x), peer(input_ids=x).logits[:, -1, :7], rtol=1e-4, atol=1e-5)


def test_a_whole_gpt2_is_trained_client_by_client(tmp_path: Path) -> None:
    gpt2 = make_model("huggingface", (6,), 7, 0, repo=folder(tmp_path / "g", "gpt2"), tokens="ids")
    with pytest.warns(UserWarning, match="one client at a time"):
        updates = client_gradients(gpt2, losses, tokens(8, 6, 7), torch.arange(8) % 7, EVEN)
    assert isinstance(updates, DenseUpdates)


def test_weights_are_drawn_from_the_seed_where_none_are_wanted(tmp_path: Path) -> None:
    configured("llama").save_pretrained(tmp_path)
    made = [
        make_model("huggingface", (6,), 7, seed, repo=str(tmp_path), tokens="ids", pretrained=False)
        for seed in (0, 0, 1)
    ]
    x = tokens(2, 6, 7)
    assert torch.equal(made[0](x), made[1](x))
    assert not torch.equal(made[0](x), made[2](x))
    with pytest.raises(ConfigError, match="can not be loaded"):
        make_model("huggingface", (6,), 7, 0, repo=str(tmp_path), tokens="ids")


def test_pickles_are_refused(tmp_path: Path) -> None:
    repo = folder(tmp_path, "gpt2")
    state = transformers.AutoModelForCausalLM.from_pretrained(repo).state_dict()
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"can not be loaded: .*safetensors"):
        make_model("huggingface", (6,), 7, 0, repo=repo, tokens="ids")


def test_code_of_a_repository_is_never_run(tmp_path: Path) -> None:
    repo = folder(tmp_path, "gpt2")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ConfigError, match="can not be loaded"):
        make_model("huggingface", (6,), 7, 0, repo=repo, tokens="ids")
    assert not (tmp_path / "ran").exists()


def tokenizer(path: Path) -> None:
    """A byte-level tokenizer, like GPT-2's but without most of its words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: 299 - i for i, letter in enumerate(alphabet)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(path)


def test_characters_are_read_as_tokens_of_the_tokenizer(tmp_path: Path) -> None:
    repo = folder(tmp_path, "gpt2")
    tokenizer(tmp_path)
    names = (*CHARACTERS[:5], " ", "\n")
    model = make_model("huggingface", (6,), 7, 0, repo=repo, names=names).eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(repo).eval()
    known = transformers.AutoTokenizer.from_pretrained(repo)
    x = tokens(5, 6, 7)
    ids = torch.tensor([known.encode("".join(names[i] for i in row)) for row in x.tolist()])
    assert ids.shape == x.shape
    columns = torch.tensor([known.encode(name)[0] for name in names])
    torch.testing.assert_close(model(x), theirs(input_ids=ids).logits[:, -1][:, columns])
    with pytest.raises(ConfigError, match=r"'the' is not one token of its tokenizer but 3"):
        make_model("huggingface", (6,), 2, 0, repo=repo, names=("a", "the"))
    with pytest.raises(ConfigError, match="needs to know what the data set's tokens stand for"):
        make_model("huggingface", (6,), 7, 0, repo=repo)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens": "id"}, "tokens must be one of tokenizer, ids, got 'id'; did you mean 'ids'"),
        ({"task": "classification"}, "task must be one of next-token, got 'classification'"),
        ({"repo": ""}, "repo must be the name of a repository or a folder, got ''"),
        ({"repo": "nobody/nothing"}, "repo 'nobody/nothing': can not be loaded"),
        ({"revison": "main"}, "has no option 'revison': did you mean 'revision'"),
    ],
)
def test_wrong_options_say_what_is_right(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    repo = folder(tmp_path, "llama")
    with pytest.raises(ConfigError, match=words):
        make_model("huggingface", (6,), 7, 0, **{"repo": repo, "tokens": "ids", **options})


def test_sizes_must_fit(tmp_path: Path) -> None:
    repo = folder(tmp_path, "gpt2")
    with pytest.raises(ConfigError, match="has 300 tokens, the data set needs 301"):
        make_model("huggingface", (6,), 301, 0, repo=repo, tokens="ids")
    with pytest.raises(ConfigError, match="reads at most 16 tokens, samples have 17"):
        make_model("huggingface", (17,), 7, 0, repo=repo, tokens="ids")
    with pytest.raises(ConfigError, match="needs tokens of shape"):
        make_model("huggingface", (1, 8, 8), 7, 0, repo=repo, tokens="ids")


@pytest.mark.data
def test_an_experiment_federates_its_adapters_on_characters(data_dir: Path, tmp_path: Path) -> None:
    from bezoar.experiments import Experiment, run

    if not (data_dir / "shakespeare").exists():
        pytest.skip(f"no shakespeare in {data_dir}")
    repo = folder(tmp_path, "gpt2", n_positions=80)
    tokenizer(tmp_path)
    table = {
        "rounds": 2,
        "data": {"dataset": "shakespeare", "partition": {"kind": "natural", "column": "role", "min_samples": 20_000}},
        "model": {"name": "huggingface", "repo": repo, "lora": {"targets": ["c_attn"], "rank": 2}},
        "learning_rate": {"kind": "constant", "lr": 0.1},
        "sampling": {"kind": "uniform", "cohort": 5},
        "clients": {"kind": "gradient", "batch_size": 2, "method": "ghost"},
        "defence": {"preset": "krum", "f": 1},
        "evaluation": {"every": 2, "batch_size": 500},
    }
    summary = run(Experiment.from_table(table), data_dir=data_dir).summary
    assert summary["parameters"] == 2 * 2 * (8 + 24)
    assert summary["rounds_skipped"] == 0
    assert summary["test_accuracy"] is not None
    with pytest.raises(ConfigError, match="model: names: follows from the data set"):
        run(Experiment.from_table({**table, "model": {**table["model"], "names": ["a"]}}), data_dir=data_dir)  # type: ignore[dict-item]
