"""The released NBP: counts, files in and out of arvid, the same numbers as its formulas, and sampling from it."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from arvid.cli import main
from arvid.contracts import (
    ContextSpec,
    Request,
    Size,
    TokenGrid,
    TokenSpec,
    UserError,
)
from arvid.data.sprites import Sprites
from arvid.data.video import read_video, write_video
from arvid.nn.causal_conv import Backbone
from arvid.nn.heads.categorical import CategoricalSampling
from arvid.paradigms.next_block import NextBlock
from arvid.paradigms.next_block.prompt import LlamaPrompt
from arvid.paradigms.next_block.published import Released, shapes
from arvid.sampling.sample import Conditions, sample, stream
from arvid.tokenizers.magvit_fsq import MagvitFSQ
from arvid.training.export import save_tokenizer
from arvid.training.generator_module import GeneratorModule, load_generator

SIZES = {(24, 1536, 16): "700M", (24, 2048, 32): "1.2B", (32, 3072, 32): "3B"}
WORDS = 32_000
GRID = TokenGrid(5, 4, 4)
DEPTH, DIM, HEADS = 2, 24, 2
PROMPT = [1, 5, 6, 2, 2, 2, 2, 2]
"""`<s> apply makeup` and padding, by the tokenizer below."""
Mode = str
"""A: Kinetics-600, no prompt. B: prompt, first block given. D: hybrid, the released UCF-101."""


# Counts


def paradigm_of(size: tuple[int, int, int], context: ContextSpec, **options: Any) -> NextBlock:
    depth, dim, heads = size
    with torch.device("meta"):
        return NextBlock(
            TokenSpec("discrete", 64_000, (4, 8, 8), True),
            TokenGrid(5, 16, 16),
            context,
            Size(dim=dim, depth=depth, num_heads=heads),
            **options,
        )


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("size", "k600", "hybrid", "text"),
    [
        ((24, 1536, 16), 884_431_872, 982_785_024, 982_738_944),
        ((24, 2048, 32), 1_481_232_384, 1_612_369_920, 1_612_308_480),
        ((32, 3072, 32), 4_034_107_392, 4_230_813_696, 4_230_721_536),
    ],
)
def test_counts_of_the_released_networks(
    size: tuple[int, int, int], k600: int, hybrid: int, text: int
) -> None:
    """All parameters, with 64,000, 96,016 and 96,001 ids; the null condition is a fixed table there."""
    words = ContextSpec(text_dim=0, text_len=8, text_vocab=WORDS)
    for expected, context, num_other_ids, start in (
        (k600, ContextSpec(), 0, "none"),
        (hybrid, words, WORDS + 16, "hybrid"),
        (text, words, WORDS + 1, "none"),
    ):
        options = {"start": start, "num_positions": 5120, "num_other_ids": num_other_ids}
        net = paradigm_of(size, context, **options)
        unused = (
            size[1] if start == "none" and context.num_tokens else 0
        )  # the input of an id that never occurs
        assert count(net) - net.context.null.numel() + unused == expected
        depth, dim, _ = size
        assert count(net.transformer) == depth * (12 * dim**2 + 13 * dim)


@pytest.mark.parametrize(
    ("size", "millions"),
    [((24, 1536, 16), 679.55), ((24, 2048, 32), 1233.2), ((32, 3072, 32), 3624.1)],
)
def test_counts_of_the_modern_blocks(size: tuple[int, int, int], millions: float) -> None:
    """SwiGLU 8/3 as wide as the model in multiples of 256, RMSNorm, no biases and no table of positions."""
    depth, dim, _ = size
    net = paradigm_of(size, ContextSpec(), style="llama", start="none")
    hidden = {1536: 4096, 2048: 5632, 3072: 8192}[dim]
    assert count(net.transformer) == depth * (4 * dim**2 + 3 * dim * hidden + 2 * dim)
    assert count(net.transformer) / 1e6 == pytest.approx(millions, rel=1e-4)
    assert count(net) == count(net.transformer) + 2 * 64_000 * dim + dim


@pytest.mark.parametrize("size", SIZES)
def test_released_tensors_at_full_size(size: tuple[int, int, int]) -> None:
    depth, dim, heads = size
    released = Released(
        depth=depth,
        dim=dim,
        num_heads=heads,
        block_len=16,
        num_positions=5120,
        text_len=8,
        start="hybrid",
        num_video_ids=64_000,
        dropout=0.1,
    )
    found = shapes(released)
    assert sum(t.numel() for t in found.values()) == 8 * dim + (
        depth * (12 * dim**2 + 13 * dim) + 2 * dim + 2 * 96_016 * dim + 5120 * dim
    )


# Seeded files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video tokenizer of 64 ids, a LLaMA tokenizer of 32,000 words, and a video."""
    root = tmp_path_factory.mktemp("nbp")
    torch.manual_seed(0)
    backbone = Backbone(
        base=4, multipliers=(1, 1, 1, 1), num_units=1, num_mid_units=0, num_groups=2
    )
    save_tokenizer(MagvitFSQ(backbone=backbone, levels=(4, 4, 4)), root / "fsq.safetensors", {})
    llama_tokenizer(root / "llama", WORDS)
    write_video(root / "clip.mp4", Sprites(1, num_frames=17, size=32)[0].video, 8)
    return root


def llama_tokenizer(folder: Path, num: int) -> None:
    """Words of their own; the ids of <unk>, <s> and </s> are LLaMA's."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    known = ["<unk>", "<s>", "</s>", "yo", "a", "apply", "makeup"]
    words = [*known, *(f"w{i}" for i in range(num - len(known)))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))


def arguments(mode: Mode, block_len: int, **changes: Any) -> argparse.Namespace:
    """Those of a released training."""
    return argparse.Namespace(
        **{
            "n_layer": DEPTH,
            "n_embd": DIM,
            "n_head": HEADS,
            "block_size": 100,
            "token_number_per_step": block_len,
            "unconditional": mode == "A",
            "cond_stage_key": "label" if mode == "A" else "text",
            "cond_token_num": 0 if mode == "A" else 8,
            "starts_with_bov": mode == "D",
            "hybrid": mode == "D",
            "transformer_dropout": 0.1,
            "sequence_length": 17,
            "resolution": 32,
            **changes,
        }
    )


def num_ids(mode: Mode, block_len: int) -> int:
    return {"A": 64, "B": WORDS + 64 + 1, "D": block_len + WORDS + 64}[mode]


def seeded(mode: Mode, block_len: int) -> dict[str, Tensor]:
    """Tensors by the released names."""
    ids = num_ids(mode, block_len)
    linear = ["attn.key", "attn.query", "attn.value", "attn.proj"]
    sizes: dict[str, tuple[int, ...]] = {"tok_emb.weight": (ids, DIM), "pos_emb": (1, 100, DIM)}
    for i in range(DEPTH):
        for name in linear:
            sizes |= {f"blocks.{i}.{name}.weight": (DIM, DIM), f"blocks.{i}.{name}.bias": (DIM,)}
        sizes |= {
            f"blocks.{i}.mlp.0.weight": (4 * DIM, DIM),
            f"blocks.{i}.mlp.0.bias": (4 * DIM,),
            f"blocks.{i}.mlp.2.weight": (DIM, 4 * DIM),
            f"blocks.{i}.mlp.2.bias": (DIM,),
        }
        for norm in ("ln1", "ln2"):
            sizes |= {f"blocks.{i}.{norm}.{part}": (DIM,) for part in ("weight", "bias")}
    sizes |= {"ln_f.weight": (DIM,), "ln_f.bias": (DIM,), "head.weight": (ids, DIM)}
    sizes |= {"uncond_embedding": (0 if mode == "A" else 8, DIM)}
    generator = torch.Generator().manual_seed(ids)
    tensors = {name: 0.3 * torch.randn(size, generator=generator) for name, size in sizes.items()}
    gains = [name for name in tensors if ".ln" in f".{name}" and name.endswith("weight")]
    return tensors | {name: 1 + tensors[name] for name in gains}


def write_file(
    path: Path, tensors: dict[str, Tensor], args: argparse.Namespace, prefix: str = ""
) -> None:
    """As Lightning wrote it, the tokenizer's tensors beside the network's."""
    state = {f"{prefix}transformer.{name}": tensor for name, tensor in tensors.items()}
    state[f"{prefix}first_stage_model.encoder_layers.0.conv.weight"] = torch.zeros(3)
    torch.save(
        {
            "epoch": 3,
            "pytorch-lightning_version": "1.5.4",
            "state_dict": state,
            "callbacks": {"ModelCheckpoint": {"best": torch.tensor(1.0), "score": np.float64(1)}},
            "hyper_parameters": {"args": args, "ckpt_path": None, "ignore_keys": ["mask"]},
        },
        path,
    )


def import_nbp(folder: Path, file: Path, out: Path, mode: Mode) -> int:
    text = [] if mode == "A" else ["--text", str(folder / "llama")]
    given = ["--tokenizer", str(folder / "fsq.safetensors"), *text]
    return main(["import", "nbp", str(file), str(out), *given])


@pytest.fixture(scope="module")
def imported(folder: Path) -> Callable[[Mode, int], Path]:
    """The file in arvid's format of a seeded one, made when it is first asked for."""

    def path(mode: Mode, block_len: int) -> Path:
        out = folder / f"{mode}{block_len}.ckpt"
        if not out.exists():
            source = folder / f"{mode}{block_len}_released.ckpt"
            prefix = "module." if block_len == 16 else ""
            write_file(source, seeded(mode, block_len), arguments(mode, block_len), prefix)
            assert import_nbp(folder, source, out, mode) == 0
        return out

    return path


@pytest.fixture(scope="module")
def generator(imported: Any) -> Callable[[Mode, int], GeneratorModule]:
    """What is in that file."""
    return cache(lambda mode, block_len: load_generator(imported(mode, block_len)))


# The same numbers


def released_logits(tensors: dict[str, Tensor], ids: Tensor, mask: Tensor) -> Tensor:
    """The released network by its formulas: (B, N) ids, (N, N) True where a row sees a column -> (B, N, V)."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (DIM,), tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    x = tensors["tok_emb.weight"][ids] + tensors["pos_emb"][:, : ids.shape[1]]
    for i in range(DEPTH):
        h = norm(x, f"blocks.{i}.ln1")
        q, k, v = (
            linear(h, f"blocks.{i}.attn.{name}").unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        scores = (q @ k.transpose(2, 3) / math.sqrt(DIM / HEADS)).masked_fill(~mask, -math.inf)
        x = x + linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"blocks.{i}.attn.proj")
        h = linear(norm(x, f"blocks.{i}.ln2"), f"blocks.{i}.mlp.0")
        x = x + linear(F.gelu(h), f"blocks.{i}.mlp.2")
    return norm(x, "ln_f") @ tensors["head.weight"].T


def released_sequence(mode: Mode, video: Tensor, block_len: int) -> tuple[Tensor, Tensor]:
    """Ids and mask behind which the released code predicts the block after the `video` tokens (B, K)."""
    prompt = torch.tensor([PROMPT]).expand(len(video), -1)
    if mode == "A":
        ids, causal_until, words = video, 0, 0
    elif mode == "B":
        ids, causal_until, words = torch.cat([prompt, video + WORDS], 1), 8, 8
    else:
        begin, middle = torch.zeros(len(video), 1).long(), torch.arange(1, block_len)
        moved = video + WORDS + block_len
        parts = [prompt + block_len, begin, moved[:, :block_len]]
        if video.shape[1] >= block_len:
            parts += [middle.expand(len(video), -1), moved[:, block_len:]]
        ids, causal_until, words = torch.cat(parts, 1), 8 + block_len, 8
    num = ids.shape[1]
    mask = torch.ones(num, num).tril().bool()
    mask[:, :words] = True
    for begin_of_run in range(causal_until, num, block_len):
        mask[begin_of_run : begin_of_run + block_len, causal_until : begin_of_run + block_len] = 1
    return ids, mask


CASES = [*(("A", num) for num in (1, 4, 8, 16)), ("B", 1), ("B", 4), ("D", 4), ("D", 16)]


@pytest.mark.parametrize(("mode", "block_len"), CASES)
def test_logits_and_loss_are_those_of_the_released_formulas(
    generator: Any, mode: Mode, block_len: int
) -> None:
    net, tensors = generator(mode, block_len), seeded(mode, block_len)
    tokens = torch.randint(64, (2, GRID.t, GRID.h, GRID.w))
    ids, mask = released_sequence(mode, tokens.flatten(1)[:, :-block_len], block_len)
    num = 80 if mode == "D" else 80 - block_len
    theirs = released_logits(tensors, ids, mask)[:, -num:]
    first = num_ids(mode, block_len) - 64 - (mode == "B")
    condition = net.conditioner(caption=["apply makeup"] * 2)
    paradigm = net.paradigm
    states = paradigm.hidden_states(
        paradigm.context(condition, 2),
        paradigm.padding(condition.text_mask),
        tokens.flatten(1),
        paradigm.layout,
    )
    ours = paradigm.head.logits(states)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours[..., :64], theirs[..., first : first + 64], rtol=0, atol=2e-5)
    target = tokens.flatten(1)[:, -num:] + first
    loss = F.cross_entropy(theirs.flatten(0, 1), target.flatten())
    torch.testing.assert_close(paradigm.loss(tokens, condition)["loss"], loss, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("mode", "block_len"), CASES)
def test_greedy_continuations_are_those_of_the_released_formulas(
    generator: Any, mode: Mode, block_len: int
) -> None:
    net, tensors = generator(mode, block_len), seeded(mode, block_len)
    given = {"A": 2, "B": 1, "D": 0}[mode]
    tokens = torch.randint(64, (1, GRID.t, GRID.h, GRID.w))
    first = num_ids(mode, block_len) - 64 - (mode == "B")
    video = tokens.flatten(1)[:, : given * 16]
    while video.shape[1] < 80:
        ids, mask = released_sequence(mode, video, block_len)
        num = 1 if mode == "D" and video.shape[1] < block_len else block_len
        logits = released_logits(tensors, ids, mask)[:, -num:, first : first + 64]
        video = torch.cat([video, logits.argmax(-1)], dim=1)
    drawn = net.paradigm.generate(
        Request(
            net.conditioner(caption=["apply makeup"]),
            GRID,
            prefix=tokens[:, :given] if given else None,
            options=CategoricalSampling(temperature=0.0),
        )
    )
    assert torch.equal(drawn.flatten(1), video)
    assert len(video.unique()) > 4


# Files


def test_the_report_names_every_tensor(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = seeded("D", 4)
    masks = {f"blocks.{i}.attn.mask": torch.zeros(1, 1, 4, 4) for i in range(DEPTH)}
    write_file(tmp_path / "ucf.ckpt", tensors | masks, arguments("D", 4))
    assert import_nbp(folder, tmp_path / "ucf.ckpt", tmp_path / "out.ckpt", "D") == 0
    out = capsys.readouterr().out
    assert f"{len(tensors)} tensors, {sum(t.numel() for t in tensors.values()):,} numbers" in out
    assert "transformer.blocks.1.attn.qkv.weight[2D:]" in out
    assert "attention masks, first_stage_model" in out
    description = load_generator(tmp_path / "out.ckpt").description
    assert description["imported"]["imported"] == "nbp"
    assert description["factors"] == {
        "paradigm": "next_block",
        "token_type": "discrete",
        "size": "d2w24",
    }


@pytest.mark.parametrize(
    ("mode", "block_len", "changes", "message"),
    [
        ("C", 4, {"starts_with_bov": True}, "has begin-of-video tokens"),
        ("D", 1, {}, "has begin-of-video tokens"),
        ("B", 4, {"cond_stage_key": "label"}, "its condition is 'label'"),
        ("A", 4, {"token_number_per_step": 3}, "run of 3 tokens"),
        ("A", 4, {"resolution": 36}, "height must be a multiple of 8"),
        ("A", 4, {"n_layer": 3}, "missing blocks.2.attn.key.bias"),
        ("A", 4, {"n_layer": 1}, "unexpected blocks.1.attn.key.bias"),
        ("A", 4, {"n_embd": 48}, r"head.weight is \(64, 24\), not \(64, 48\)"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    mode: Mode,
    block_len: int,
    changes: dict[str, Any],
    message: str,
) -> None:
    tensors = seeded("B" if mode == "C" else mode, block_len)
    write_file(tmp_path / "x.ckpt", tensors, arguments(mode, block_len, **changes))
    assert import_nbp(folder, tmp_path / "x.ckpt", tmp_path / "out.ckpt", mode) != 0
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out.ckpt").exists()


def test_tokenizers_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another vocabulary of the video's tokenizer or of the prompt's, and none at all."""
    write_file(tmp_path / "ucf.ckpt", seeded("D", 4), arguments("D", 4))
    llama_tokenizer(tmp_path / "llama", 100)
    backbone = Backbone(
        base=4, multipliers=(1, 1, 1, 1), num_units=1, num_mid_units=0, num_groups=2
    )
    video = tmp_path / "other.safetensors"
    save_tokenizer(MagvitFSQ(backbone=backbone, levels=(4, 4, 5)), video, {})
    own, words = str(folder / "fsq.safetensors"), str(folder / "llama")
    files = ["import", "nbp", str(tmp_path / "ucf.ckpt"), str(tmp_path / "out.ckpt")]
    for options, message in (
        (["--tokenizer", str(video), "--text", words], "not the released generator on the 80 ids"),
        (["--tokenizer", own, "--text", str(tmp_path / "llama")], "has 100 ids"),
        (["--tokenizer", own, "--text", str(tmp_path)], "there is no such file"),
        (["--tokenizer", own], "give LLaMA's tokenizer.json"),
        (["--tokenizer", "sprites-vae3d", "--text", words], "the one given is continuous"),
    ):
        assert main([*files, *options]) != 0
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(files)
    assert "required: --tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "out.ckpt").exists()


def test_files_without_arguments_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = arguments("A", 4)
    del args.resolution
    write_file(tmp_path / "x.ckpt", seeded("A", 4), args)
    assert import_nbp(folder, tmp_path / "x.ckpt", tmp_path / "out.ckpt", "A") != 0
    assert "hyper_parameters lack 'resolution'" in capsys.readouterr().err
    torch.save({"state_dict": {}}, tmp_path / "x.ckpt")
    assert import_nbp(folder, tmp_path / "x.ckpt", tmp_path / "out.ckpt", "A") != 0
    assert "has no 'hyper_parameters'" in capsys.readouterr().err


def test_prompts_are_ids_with_end_tokens_on_the_right(folder: Path) -> None:
    encoder = LlamaPrompt(str(folder / "llama"))
    ids, mask = encoder(["apply makeup", "yo yo yo"])
    assert ids.tolist() == [PROMPT, [1, 3, 3, 3, 2, 2, 2, 2]]
    assert mask.sum(1).tolist() == [3, 4]
    with pytest.raises(UserError, match="has 9 tokens, including the begin token"):
        encoder(["yo " * 8])


# Sampling from the command line


def draw(checkpoint: Path, out: Path, *options: str) -> int:
    given = ["--checkpoint", str(checkpoint), "--count", "1", "--out", str(out), *options]
    return main(["sample", *given])


def with_clip(options: Sequence[str], folder: Path) -> list[str]:
    """The options, with the folder's clip as the value of --first-frames."""
    clip = folder / "clip.mp4"
    return [f"{o}={clip}" if o == "--first-frames" else o for o in options]


@pytest.mark.parametrize(
    ("mode", "options", "evaluations"),
    [
        ("D", ["--prompt=yo yo"], 4 - 1 + 20),  # class only
        ("D", ["--prompt=yo yo", "--first-frames"], 16),
        ("B", ["--prompt=yo yo", "--first-frames"], 16),  # class and first frame
        ("B", ["--guidance=1.5", "--negative-prompt=a", "--first-frames"], 16),
        ("A", ["--first-frames", "--num-first-frames=5"], 12),  # frame prediction
        ("A", ["--first-frames", "--temperature=0", "--frames=9"], 8),
    ],
)
def test_every_mode_samples_from_the_command_line(
    folder: Path,
    imported: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    mode: Mode,
    options: list[str],
    evaluations: int,
) -> None:
    assert draw(imported(mode, 4), tmp_path / "out", *with_clip(options, folder)) == 0
    frames = 9 if "--frames=9" in options else 17
    said = f"1 clip of {frames} frames, network evaluations per clip:\n  {evaluations} transformer"
    assert said in capsys.readouterr().out
    assert read_video(tmp_path / "out/000.mp4").frames.shape == (frames, 32, 32, 3)


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        ("A", [], "Give first frames"),
        ("B", ["--prompt=yo yo"], "Give first frames"),
        ("A", ["--prompt=yo yo"], "trained without that condition"),
        ("D", ["--prompt=" + "yo " * 9], "at most 8"),
        ("A", ["--first-frames", "--num-first-frames=2"], "2 frames do not fit this tokenizer"),
        ("A", ["--first-frames", "--num-first-frames=17"], "leave nothing to generate"),
        ("A", ["--first-frames", "--frames=21"], "cannot exceed its training length"),
        ("A", ["--first-frames", "--rounds=2"], "trained to see a part of it"),
    ],
)
def test_what_cannot_be_sampled_says_why(
    folder: Path,
    imported: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    mode: Mode,
    options: list[str],
    message: str,
) -> None:
    assert draw(imported(mode, 4), tmp_path / "out", *with_clip(options, folder)) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_streamed_frames_are_the_sampled_clip(folder: Path, generator: Any) -> None:
    """They come latent frame by latent frame; the given ones before anything is drawn."""
    net = generator("A", 4)
    video = read_video(folder / "clip.mp4").frames[None]
    options: dict[str, Any] = {"first_frames": video[:, :5], "progress": False, "seed": 3}
    pieces = list(stream(net, Conditions(num_clips=1), **options))
    assert [piece.shape[1] for piece in pieces] == [5, 4, 4, 4]
    whole = sample(net, Conditions(num_clips=1), **options).astype(int)
    assert abs(whole - torch.cat([torch.from_numpy(p) for p in pieces], 1).numpy()).max() <= 1
