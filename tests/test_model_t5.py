"""The model, the tokenizer and its files, against transformers."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from safetensors.torch import load_file

from bigbench_tasks import TASKS, generate
from model_t5 import T5, T5Config, Tokenizer, load_checkpoint, save_checkpoint
from support import task_files
from support.fast_dropout import Dropout
from tests.conftest import BIGBENCH, SPIECE, T5_SPIECE, needs_official_files

TEXTS = [example.question for task in TASKS for example in generate(task, 40, seed=1)]

torch.set_num_threads(1)  # matrices this small only lose by sharing

TINY = {
    "vocab_size": 2148, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 3, "num_layers": 2,
    "decoder_start_token_id": 0, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
}  # fmt: skip
ORIGINAL = TINY | {"num_decoder_layers": 3}
FLAN = TINY | {"num_decoder_layers": 1, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def write_peer(directory: Path, values: dict, dtype=torch.float32, **how):
    """A random checkpoint written by transformers, norms and FLAN output matrix not as at the start."""
    torch.manual_seed(0)
    peer = transformers.T5ForConditionalGeneration(transformers.T5Config(**values)).eval()
    if values.get("tie_word_embeddings") is False:
        peer.lm_head.weight = torch.nn.Parameter(torch.randn_like(peer.shared.weight) * 0.5)
    for name, parameter in peer.named_parameters():
        if "layer_norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    peer.to(dtype).save_pretrained(directory, **how)
    shutil.copyfile(SPIECE, directory / "spiece.model")
    return peer.float()


def as_bin(directory: Path) -> None:
    """Turn safetensors, one file or several, into the pickled form, with the copies that transformers 4 wrote."""
    parts = {path: load_file(path) for path in sorted(directory.glob("*.safetensors"))}
    tied = not any("lm_head.weight" in tensors for tensors in parts.values())
    weight_map = {}
    for path, tensors in parts.items():
        if "shared.weight" in tensors:
            users = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"] + ["lm_head.weight"] * tied
            tensors |= dict.fromkeys(users, tensors["shared.weight"])
            tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(8, 3)
        name = path.stem.replace("model", "pytorch_model") + ".bin"
        weight_map |= dict.fromkeys(tensors, name)
        torch.save(tensors, directory / name)
        path.unlink()
    for path in directory.glob("*.index.json"):
        path.unlink()
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def batch(num_targets=1):
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(3, 2048, (3, 20), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 11:] = 0
    labels = torch.randint(3, 2048, (3 * num_targets, 17), generator=generator)
    labels[2, 5:] = -100
    return input_ids, attention_mask, labels


def assert_same_function(model: T5, peer) -> None:
    input_ids, attention_mask, labels = batch()
    with torch.no_grad():
        ours = model(input_ids, attention_mask, labels)
        theirs = peer(input_ids=input_ids, attention_mask=attention_mask, labels=labels).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def greedy(model: T5, input_ids, attention_mask, length: int) -> torch.Tensor:
    cache = model.start_cache(model.encode(input_ids, attention_mask), attention_mask, 1, length)
    tokens = [torch.full((len(input_ids),), model.config.decoder_start_token_id)]
    for _ in range(length):
        tokens.append(model.step(tokens[-1], cache).argmax(-1))
    return torch.stack(tokens[1:], dim=1)


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        ("safetensors", torch.float32), ("safetensors", torch.bfloat16), ("split safetensors", torch.float16),
        ("bin", torch.bfloat16), ("split bin", torch.float32),
    ],
)  # fmt: skip
@pytest.mark.parametrize("values", [ORIGINAL, FLAN], ids=["original", "flan"])
def test_reads_what_transformers_writes(tmp_path, values, form, dtype):
    peer = write_peer(tmp_path, values, dtype, **({"max_shard_size": "100KB"} if "split" in form else {}))
    assert (tmp_path / "model.safetensors.index.json").exists() == ("split" in form)
    if "bin" in form:
        as_bin(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        config["tie_word_embeddings"] = values.get("tie_word_embeddings", True)  # one key stood for tying and scaling
        del config["scale_decoder_outputs"]
        (tmp_path / "config.json").write_text(json.dumps(config))
    model, _ = load_checkpoint(str(tmp_path))
    assert {p.dtype for p in model.parameters()} == {torch.float32} and not model.training
    assert model.config.tie_word_embeddings == (values is ORIGINAL) == model.config.scale_decoder_outputs
    assert_same_function(model, peer)
    input_ids, attention_mask, _ = batch()
    with torch.no_grad():
        # The cache of transformers 5.23 has no place for the layers of a decoder deeper than the encoder.
        how = {"do_sample": False, "use_cache": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 12}
        theirs = peer.generate(input_ids=input_ids, attention_mask=attention_mask, **how)
        assert torch.equal(greedy(model, input_ids, attention_mask, 12), theirs[:, 1:])


@pytest.mark.parametrize("values", [ORIGINAL, FLAN], ids=["original", "flan"])
def test_transformers_reads_what_we_write(tmp_path, values):
    torch.manual_seed(0)
    model = T5(T5Config(**values)).eval()
    tokenizer = Tokenizer(SPIECE, extra_ids=100)
    saved = tmp_path / "new" / "model"
    save_checkpoint(saved, model, tokenizer)
    peer = transformers.T5ForConditionalGeneration.from_pretrained(saved)
    assert_same_function(model, peer)
    text = "a <extra_id_0> b\n"
    assert transformers.AutoTokenizer.from_pretrained(saved)(text).input_ids == tokenizer.encode(text)
    again, _ = load_checkpoint(saved)
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert sorted(path.name for path in saved.iterdir()) == [
        "config.json", "model.safetensors", "spiece.model", "tokenizer_config.json",
    ]  # fmt: skip


def test_initial_weights_have_the_spread_of_transformers(tmp_path):
    torch.manual_seed(0)
    values = FLAN | {"vocab_size": 500, "d_model": 96, "d_ff": 200, "num_heads": 12, "initializer_factor": 0.5}
    peer = dict(transformers.T5ForConditionalGeneration(transformers.T5Config(**values)).named_parameters())
    for name, parameter in T5(T5Config(**values)).named_parameters():
        theirs = peer.get(name, peer["shared.weight"])  # transformers starts with a tied output layer
        ours, theirs = parameter.detach(), theirs.detach()
        assert ours.shape == theirs.shape
        assert ours.std(correction=0).item() == pytest.approx(theirs.std(correction=0).item(), rel=0.3, abs=1e-6), name
        assert (ours.mean() - theirs.mean()).abs() <= 0.4 * theirs.std(correction=0) + 1e-6, name


def test_steps_with_a_cache_are_the_full_decoder():
    torch.manual_seed(0)
    model = T5(T5Config(**ORIGINAL)).eval()
    num_targets = 3
    input_ids, attention_mask, labels = batch(num_targets)
    attention_mask[2] = 0  # nothing to see is no reason for NaN
    with torch.no_grad():
        full = model(input_ids, attention_mask, labels)
        one_by_one = model(input_ids.repeat_interleave(3, 0), attention_mask.repeat_interleave(3, 0), labels)
        torch.testing.assert_close(full, one_by_one, atol=1e-4, rtol=1e-4)
        assert full.isfinite().all()
        decoder_input_ids = model.shift_right(labels)
        memory = model.encode(input_ids, attention_mask)
        caches = [model.start_cache(memory, attention_mask, num_targets, 17) for _ in range(2)]
        rows = torch.arange(9)
        for t in range(17):
            if t == 7:
                kept = torch.tensor([2, 0])
                rows, caches[0] = caches[0].rows(kept), caches[0].keep(kept)
            logits = model.step(decoder_input_ids[rows, t], caches[0])
            torch.testing.assert_close(logits, full[rows, t], atol=1e-4, rtol=1e-4)
            model.step(decoder_input_ids[:, 16 - t], caches[1])  # a second generation in between disturbs nothing
        with pytest.raises(IndexError):
            model.step(decoder_input_ids[rows, 0], caches[0])


def test_training_in_bfloat16_and_with_recomputed_blocks():
    torch.manual_seed(0)
    model = T5(T5Config(**FLAN)).train()  # with dropout: what is recomputed is dropped alike
    gradients = []
    for autocast, recompute in ((False, False), (False, True), (True, False)):
        torch.manual_seed(0)
        model.zero_grad()
        model.gradient_checkpointing = recompute
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(*batch(2))
        torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch(2)[2].flatten()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1])
    assert torch.cosine_similarity(gradients[0], gradients[2], dim=0) > 0.99


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout(p, dtype):
    torch.manual_seed(0)
    dropout, x = Dropout(p), torch.ones(401, 2501, dtype=dtype, requires_grad=True)  # no multiple of four
    y = dropout(x)
    y.sum().backward()
    assert torch.equal(x.grad, y)
    assert y.dtype == dtype and set(y.unique().tolist()) == {0.0, torch.tensor(1 / (1 - p), dtype=dtype).item()}
    kept = (y != 0).double()
    error = 5 * (p * (1 - p)) ** 0.5  # five standard deviations of one value
    for i in range(4):  # each of the four that share a draw
        assert abs(kept.flatten()[i::4].mean() - (1 - p)) < error / 250_000**0.5
    for apart in range(1, 5):  # neighbours know nothing of each other
        a, b = kept.flatten()[:-apart], kept.flatten()[apart:]
        assert abs((a - a.mean()) @ (b - b.mean())) / len(a) < 5 * p * (1 - p) / 1_000_000**0.5
    assert torch.equal(dropout.eval()(x), x) and torch.equal(Dropout(0.0)(x), x)


# --- tokenizer

AWKWARD = [
    "", " ", "\n", " a ", "a  b", "a\nb\r\n\tc", "héllo e\u0301", "🙂 x🙂", "a<extra_id_0>b", "a <extra_id_0> b",
    "<extra_id_99> .", "<extra_id_0><extra_id_1>", "<extra_id_0>\nb", "<extra_id_100>", "<extra_id_00>", "x</s>y",
    "x </s> y</s>", "<pad>a", "<unk>",
    "a\u00a0b\u3000c\u200bd\u2028e", "a\x85b", "a\x00b\x01c", "▁a ▁ b", "ﬁne ½", "\ufeffa\u00adb",
]  # fmt: skip


@pytest.fixture(scope="module")
def small_vocabulary(tmp_path_factory) -> Path:
    """300 pieces, made from generated questions."""
    directory = tmp_path_factory.mktemp("vocabulary")
    (directory / "corpus.txt").write_text("\n".join(TEXTS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "corpus.txt"), model_prefix=str(directory / "spiece"), vocab_size=300,
        character_coverage=1.0, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", minloglevel=2,
    )  # fmt: skip
    return directory / "spiece.model"


def official_texts() -> list[str]:
    entries = [entry for task in TASKS for entry in task_files.read(task_files.path_of(task, BIGBENCH))]
    return sorted({text for entry in entries for text in (entry["input"], *entry.get("target_scores", ()))})


@pytest.mark.parametrize("vocabulary", ["small", pytest.param("T5's", marks=needs_official_files)])
def test_tokenizer_gives_the_ids_and_texts_of_transformers(tmp_path, small_vocabulary, vocabulary):
    spiece, texts = (small_vocabulary, TEXTS) if vocabulary == "small" else (T5_SPIECE, official_texts()[::5])
    shutil.copyfile(spiece, tmp_path / "spiece.model")
    peer, tokenizer = transformers.T5Tokenizer.from_pretrained(tmp_path), Tokenizer(spiece)
    theirs = peer(texts + AWKWARD).input_ids
    assert [tokenizer.encode(text) for text in texts + AWKWARD] == theirs
    theirs = theirs[: len(texts)]
    assert [tokenizer.decode(ids) for ids in theirs] == peer.batch_decode(theirs, skip_special_tokens=True)
    size = len(peer)
    assert (tokenizer.vocab_size, tokenizer.pad_token_id, tokenizer.eos_token_id) == (size, 0, 1)
    assert tokenizer.encode("<extra_id_0>") == [size - 1, 1]
    assert all(isinstance(tokenizer.decode([i]), str) for i in range(-100, size + 30, 7))
    assert tokenizer.decode([-100, 0, 1, 2, size - 100, size + 27]) == ""
    assert tokenizer.decode(torch.tensor([1, 9, 9, 1, 9])) == tokenizer.decode(np.array([9, 9, 9]))


def test_loading_imports_no_compiler():
    code = (
        "import sys, model_t5; model_t5.load_checkpoint('checkpoints/t5-nano'); print('torch._dynamo' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=SPIECE.parents[2], capture_output=True, text=True, check=True
    )
    assert run.stdout == "False\n"
