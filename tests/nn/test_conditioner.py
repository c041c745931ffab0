"""Conditions and text: nulls, padding, dropping, and prompts that are too long."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from arvid.contracts import Condition, ContextSpec, UserError
from arvid.files import sha256_json
from arvid.nn.conditioner import Conditioner, ContextEmbedder, warn_once
from arvid.nn.conditions import condition
from arvid.nn.positions import grid_code, scalar_code
from arvid.nn.text import HuggingFaceTextEncoder, KnownFeatures, WordTextEncoder
from arvid.tensor_files import save_tensors

SPEC = ContextSpec(text_dim=8, text_len=3, conditions={"label": 5, "motion": 1, "fps": 1})


def test_context_has_one_token_for_each_condition() -> None:
    embedder = ContextEmbedder(SPEC, 16)
    assert SPEC.num_tokens == 6
    assert embedder(Condition(), 4).shape == (4, 6, 16)


def test_unknown_values_are_null() -> None:
    embedder = ContextEmbedder(SPEC, 16)
    null = embedder(Condition(), 2)
    unknown = Condition(
        values={"label": torch.tensor([-1, 2]), "motion": torch.tensor([float("nan"), 1.0])}
    )
    tokens = embedder(unknown, 2)
    assert torch.equal(tokens[0], null[0])
    assert not torch.equal(tokens[1, 3], null[1, 3])
    assert not torch.equal(tokens[1, 4], null[1, 4])


def test_rates_are_conditions_where_a_model_is_built_for_them() -> None:
    given = {"motion": torch.tensor([1.0]), "fps": torch.tensor([12.0])}
    assert list(Conditioner(sizes={"motion": 1})(values=given).values) == ["motion"]
    with_fps = Conditioner(sizes={"fps": 1})
    assert with_fps.spec == ContextSpec(conditions={"fps": 1})
    embedder = ContextEmbedder(with_fps.spec, 16)
    slow, fast = (embedder(with_fps(values={"fps": torch.tensor([x])}), 1) for x in (8.0, 12.0))
    assert not torch.equal(slow, fast)


def test_padding_is_null_whatever_its_features() -> None:
    embedder = ContextEmbedder(SPEC, 16)
    text = torch.randn(1, 3, 8)
    mask = torch.tensor([[True, False, False]])
    changed = text.clone()
    changed[:, 1:] += 1
    first = embedder(Condition(text=text, text_mask=mask), 1)
    assert torch.equal(first, embedder(Condition(text=changed, text_mask=mask), 1))


def test_dropping_gives_the_null_condition() -> None:
    embedder = ContextEmbedder(SPEC, 16)
    condition = Condition(values={"label": torch.tensor([1, 1])})
    tokens = embedder(condition, 2, drop=torch.tensor([True, False]))
    assert torch.equal(tokens[0], embedder(Condition(), 1)[0])
    assert not torch.equal(tokens[1], embedder(Condition(), 1)[0])


def test_guidance_without_conditions_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    for _ in range(2):
        assert ContextEmbedder(ContextSpec(), 16).guided(Condition(), 2, True).shape == (2, 0, 16)
    assert caplog.text.count("Guidance has no effect") == 1


def test_word_encoder_reads_any_script_and_ignores_case() -> None:
    encoder = WordTextEncoder(dim=16, max_words=6)
    features, mask = encoder(["A cat, running", "a CAT , running", "猫が走る"])
    assert features.shape == (3, 6, 16)
    assert mask.sum(1).tolist() == [4, 4, 1]
    assert torch.equal(features[0], features[1])
    assert not torch.allclose(features[0], features[2])


def test_word_encoder_tells_orders_apart() -> None:
    features, _ = WordTextEncoder(dim=16, max_words=4)(["red on blue", "blue on red"])
    assert not torch.allclose(features[0, 0], features[1, 0], atol=1e-3)


def test_a_long_prompt_is_refused_not_cut() -> None:
    with pytest.raises(UserError, match=r"9 words.*at most 8"):
        WordTextEncoder(dim=16, max_words=8)(["x " * 9])


def test_unknown_label_is_refused() -> None:
    with pytest.raises(UserError, match="labels 0 to 4"):
        Conditioner(sizes={"label": 5})(values={"label": torch.tensor([7])})


def test_labels_without_classes_are_refused() -> None:
    with pytest.raises(UserError, match="no classes"):
        condition("label").size(())


def test_codes_are_the_published_ones() -> None:
    code = scalar_code(torch.tensor([1.0]))[0]
    assert code[0].item() == pytest.approx(0.84147, abs=1e-4)  # sin 1 first
    assert code[128].item() == pytest.approx(0.5403, abs=1e-4)
    assert scalar_code(torch.tensor([1.0]), cos_first=True)[0, 0].item() == pytest.approx(
        0.5403, abs=1e-4
    )
    grid = grid_code(2, 3, 8)  # row 1, column 2 is token 5: column first
    assert grid[5, 0].item() == pytest.approx(torch.tensor(2.0).sin().item())
    assert grid[5, 4].item() == pytest.approx(torch.tensor(1.0).sin().item())


@pytest.fixture
def local_encoder(tmp_path: Path) -> Path:
    """A tiny BERT with a word tokenizer, saved as a local folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "a", "red", "square", "moves", "left"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertModel(config).save_pretrained(tmp_path)
    return tmp_path


def test_any_hugging_face_encoder_by_local_path(local_encoder: Path) -> None:
    encoder = HuggingFaceTextEncoder(str(local_encoder), num_tokens=6)
    features, mask = encoder(["a red square", "square"])
    assert features.shape == (2, 6, 16)
    assert mask.sum(1).tolist() == [3, 1]
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder.train().model.training
    with pytest.raises(UserError, match="at most 6"):
        encoder(["a a a a a a a"])


def test_features_are_kept_on_disk(
    local_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARVID_CACHE", str(tmp_path / "cache"))
    prompts = ["a red square", "", "square moves left", "a red square"]
    plain, mask = HuggingFaceTextEncoder(str(local_encoder), num_tokens=6)(prompts)
    first = HuggingFaceTextEncoder(str(local_encoder), num_tokens=6, cache=True)
    features, known = first(prompts)
    torch.testing.assert_close(features, plain, rtol=1e-3, atol=1e-3)
    assert torch.equal(known, mask)
    again = HuggingFaceTextEncoder(str(local_encoder), num_tokens=6, cache=True)
    monkeypatch.setattr(
        again, "_encode", lambda prompts: [] if not prompts else pytest.fail("encoded again")
    )
    assert torch.equal(again(prompts)[0], features)  # a repeated run has the same numbers


def test_features_that_data_workers_read_are_not_read_again(
    local_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARVID_CACHE", str(tmp_path / "cache"))
    assert HuggingFaceTextEncoder(str(local_encoder)).reader() is None
    options = {"num_tokens": 3, "truncate": True, "cache": True}
    encoder = HuggingFaceTextEncoder(str(local_encoder), **options)
    prompts = ["a red square moves", "", "square", "a red square moves left"]  # two are cut alike
    encoder([*prompts[:2], prompts[3]])
    reader = pickle.loads(pickle.dumps(encoder.reader()))
    known = KnownFeatures.of([reader(prompt) for prompt in prompts])
    assert known is not None
    assert known.lengths == [3, 0, -1, 3]
    assert known.rows.shape == (4, 3, 16)
    again = HuggingFaceTextEncoder(str(local_encoder), **options)
    assert again.cache is not None
    read: list[tuple[int, ...]] = []
    monkeypatch.setattr(again.cache, "read", lambda ids: read.append(ids))
    given = Conditioner(text=again).from_batch({"caption": prompts, "text": known})
    features, mask = given.text, given.text_mask
    assert features is not None
    assert mask is not None
    assert read == [again._ids("square")]
    expected, expected_mask = encoder(prompts)
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(features[[0, 1, 3]], expected[[0, 1, 3]])
    assert KnownFeatures.of([None, None]) is None


def test_damaged_features_are_made_anew(
    local_encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("ARVID_CACHE", str(tmp_path / "cache"))
    encoder = HuggingFaceTextEncoder(str(local_encoder), num_tokens=6, cache=True)
    expected = encoder(["a red square"])[0]
    (path,) = (tmp_path / "cache/text").rglob("*.pack")
    whole = path.read_bytes()
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 64]), whole[:9], b""):
        path.write_bytes(damaged)
        caplog.clear()
        for _ in range(2):
            torch.testing.assert_close(encoder(["a red square"])[0], expected, rtol=1e-3, atol=1e-3)
        assert caplog.text.count(f"{path} is damaged") == 1


def test_features_that_cannot_be_kept_end_no_training(
    local_encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "cache").write_text("a file, so nothing can be written below it")
    monkeypatch.setenv("ARVID_CACHE", str(tmp_path / "cache"))
    encoder = HuggingFaceTextEncoder(str(local_encoder), num_tokens=6, cache=True)
    plain = HuggingFaceTextEncoder(str(local_encoder), num_tokens=6)
    expected = plain(["a red square"])[0].half().float()
    for _ in range(2):
        assert torch.equal(encoder(["a red square"])[0], expected)
    assert caplog.text.count("Set ARVID_CACHE to another folder") == 1


def test_features_in_files_of_earlier_versions_are_read(
    local_encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("ARVID_CACHE", str(tmp_path / "cache"))
    encoder = HuggingFaceTextEncoder(str(local_encoder), num_tokens=6, cache=True)
    assert encoder.cache is not None
    digest = sha256_json(encoder._ids("a red square"))
    path = encoder.cache.folder / digest[:2] / f"{digest[2:]}.safetensors"
    save_tensors(path, {"features": torch.full((3, 16), 7.0).half()})
    features, mask = encoder(["a red square"])
    assert mask.sum() == 3
    assert (features[mask] == 7).all()
    path.write_bytes(path.read_bytes()[:-1])
    features, _ = encoder(["a red square"])
    assert f"{path} is damaged" in caplog.text
    assert not (features[mask] == 7).any()


def test_another_encoder_has_other_files(
    local_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARVID_CACHE", str(tmp_path / "cache"))
    before = HuggingFaceTextEncoder(str(local_encoder), cache=True)
    weights = local_encoder / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    after = HuggingFaceTextEncoder(str(local_encoder), cache=True)
    assert before.cache is not None
    assert after.cache is not None
    assert before.cache.folder != after.cache.folder


def test_a_long_prompt_is_cut_where_that_is_asked(
    local_encoder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = HuggingFaceTextEncoder(str(local_encoder), num_tokens=2, truncate=True)
    _, mask = encoder(["a red square"])
    assert mask.sum() == 2
    assert "3 tokens: only the first 2 are used" in caplog.text


def test_a_missing_encoder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No text encoder at"):
        HuggingFaceTextEncoder(str(tmp_path / "nothing"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_features_do_not_depend_on_the_precision_of_training(
    local_encoder: Path, dtype: torch.dtype
) -> None:
    encoder = HuggingFaceTextEncoder(str(local_encoder), num_tokens=6)
    encoder.model.to(dtype)
    plain, _ = encoder(["a cat"])
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = encoder(["a cat"])
    assert torch.equal(plain, mixed)
