"""A T5 that someone fine-tuned with transformers 5, which saves tokenizer.json and no spiece.model."""

import json
import shutil

import pytest
import torch
import transformers

import train
from model_t5 import load_checkpoint, save_checkpoint
from support import REPOSITORY
from support.errors import InputError
from tests.conftest import SPIECE, T5_SPIECE, needs_official_files
from tests.test_hub import hub  # noqa: F401 (a fixture)
from tests.test_model_t5 import AWKWARD, FLAN, assert_same_function, official_texts, write_peer

pytestmark = needs_official_files
TINY = {"d_model": 16, "d_ff": 16, "num_layers": 1}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with the vocabulary of another model of the T5 family, and another vocabulary; no network."""
    snapshots = [tmp_path / "cache" / f"models--org--{name}" / "snapshots" / "x" for name in ("a", "b", "c")]
    for snapshot, spiece in zip(snapshots, (SPIECE, T5_SPIECE, T5_SPIECE), strict=True):
        snapshot.mkdir(parents=True)
        shutil.copyfile(spiece, snapshot / "spiece.model")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "cache"


def fine_tuned(directory, spiece=T5_SPIECE, dtype=torch.float32, vocab_size=32128, more_tokens=(), **how):
    """Model and tokenizer as transformers 5 saves them."""
    peer = write_peer(directory, FLAN | TINY | {"vocab_size": vocab_size}, dtype, **how)
    shutil.copyfile(spiece, directory / "spiece.model")
    tokenizer = transformers.T5Tokenizer.from_pretrained(directory, extra_ids=0 if vocab_size < 32000 else 100)
    tokenizer.add_tokens(list(more_tokens))
    tokenizer.save_pretrained(directory)
    (directory / "spiece.model").unlink()
    return peer, transformers.AutoTokenizer.from_pretrained(directory)


def test_a_fine_tuned_t5_loads_with_the_vocabulary_of_the_cache(tmp_path, cache, capsys):
    peer, their_tokenizer = fine_tuned(tmp_path / "mine", dtype=torch.bfloat16, max_shard_size="100KB")
    model, tokenizer = load_checkpoint(tmp_path / "mine")
    said = capsys.readouterr().out.replace("\n    ", "")
    assert "models--org--b" in said and "mine" in said and "spiece.model" in said
    assert_same_function(model, peer)
    texts = AWKWARD + official_texts()[::20]
    assert [tokenizer.encode(text) for text in texts] == their_tokenizer(texts).input_ids
    shutil.rmtree(cache)
    save_checkpoint(tmp_path / "ours", model, tokenizer)
    again, tokenizer = load_checkpoint(tmp_path / "ours")
    assert_same_function(again, peer)
    assert [tokenizer.encode(text) for text in texts] == their_tokenizer(texts).input_ids
    assert not capsys.readouterr().out


def test_other_vocabularies_are_taken_from_where_tokenizer_says(tmp_path, cache):
    _, theirs = fine_tuned(tmp_path / "small", SPIECE, vocab_size=2048)
    fine_tuned(tmp_path / "more", more_tokens=["<step>"])
    (tmp_path / "none").mkdir()
    for name in ("small", "more", "none"):
        if name == "none":
            fine_tuned(tmp_path / name)
            (tmp_path / name / "tokenizer.json").unlink()
        with pytest.raises(InputError, match=rf"{name}: holds neither spiece\.model nor T5's own .* --tokenizer\.$"):
            load_checkpoint(tmp_path / name)
    _, tokenizer = load_checkpoint(tmp_path / "small", REPOSITORY / "checkpoints" / "t5-mini")
    assert (tokenizer.vocab_size, tokenizer.encode("Is it 7?")) == (2048, theirs("Is it 7?").input_ids)
    _, tokenizer = load_checkpoint(tmp_path / "none", "org/c")
    assert tokenizer.vocab_size == 32100
    with pytest.raises(InputError, match=r"small: spiece\.model and extra_ids make 32100 .* vocab_size .* 2048"):
        load_checkpoint(tmp_path / "small", "org/c")
    with pytest.raises(InputError, match=r"more: holds neither"):
        load_checkpoint(tmp_path / "none", tmp_path / "more")


def test_any_tokenizer_json_is_refused_in_a_sentence(tmp_path, cache):
    fine_tuned(tmp_path)
    for pieces in (None, 3, {}, {"<pad>": 0}, [["a"]], [["a", "b"]], [["\ud800", 0.0]], [7]):
        for content in ({"model": {"vocab": pieces}, "added_tokens": []}, {"model": pieces}):
            (tmp_path / "tokenizer.json").write_text(json.dumps(content))
            with pytest.raises(InputError, match="--tokenizer"):
                load_checkpoint(tmp_path)


def test_of_the_hub_only_what_is_missing_is_asked_for(tmp_path, hub):  # noqa: F811
    fine_tuned(tmp_path / "mine")
    hub.files.joinpath("spiece.model").unlink()
    with pytest.raises(InputError, match=r"T5's own pieces, but no spiece\.model; .* with --tokenizer .*flan-t5-small"):
        load_checkpoint(tmp_path / "mine")
    hub.asked.clear()
    with pytest.raises(InputError, match=r"org/tiny: .* the hub has no spiece\.model of that name"):
        load_checkpoint(tmp_path / "mine", "org/tiny")
    shutil.copyfile(T5_SPIECE, hub.files / "spiece.model")
    load_checkpoint(tmp_path / "mine", "org/tiny")
    assert {path.rsplit("/", 1)[1] for path in hub.asked} == {"spiece.model", "tokenizer_config.json"}
    asked = len(hub.asked)
    load_checkpoint(tmp_path / "mine")  # from the cache, where it is now
    assert len(hub.asked) == asked
    # A model of the hub without spiece.model, then its vocabulary from a directory.
    for path in hub.files.iterdir():
        path.unlink()
    peer, _ = fine_tuned(hub.files)
    shutil.rmtree(hub.cache)
    (tmp_path / "vocabulary").mkdir()
    shutil.copyfile(T5_SPIECE, tmp_path / "vocabulary" / "spiece.model")
    model, _ = load_checkpoint("org/tiny", tmp_path / "vocabulary")
    assert_same_function(model, peer)
    with pytest.raises(InputError, match=r"snapshots/main: holds T5's own"):
        load_checkpoint("org/tiny")


def test_a_fine_tuned_t5_is_trained(tmp_path, cache):
    fine_tuned(tmp_path / "mine")
    sizes = "--task object_counting --questions 4 --test-size 3 --train-epochs 1 --max-new-tokens 3 --iterations 1"
    arguments = [*sizes.split(), "--checkpoint", str(tmp_path / "mine"), "--out"]
    assert train.main([*arguments, str(tmp_path / "out")]) == 0
    assert load_checkpoint(tmp_path / "out")[1].vocab_size == 32100  # in the run's directory, with spiece.model
    nowhere = str(tmp_path / "nowhere" / "x")
    assert train.main([*arguments, str(tmp_path / "other"), "--tokenizer", nowhere]) == 2
    assert not (tmp_path / "other").exists()
