"""Train SpritesNet, the feature network of `fd-sprites` and the classifier of attribute accuracy.

    python benchmarks/demo/train_sprites_net.py --steps 1000

Writes arvid/assets/sprites-net.safetensors, and the record of the training, sprites-net.json, beside it. Training clips
are sprites of seed 0, each used once. Accuracies are measured on unseen clips (seed 1).

Blur, noise and tint are added, so that the network is reliable on the clips of a small generator. With classification
only, the features would ignore background, blur and flicker, and so would a Fréchet distance over them. So the first
two features are trained to measure blur and noise, and an auxiliary head (dropped afterwards) predicts coarse layout,
motion energy and sharpness from all features.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from arvid.data.sprites import Sprites
from arvid.files import sha256_file, write_json
from arvid.metrics.sprites_net import ASSET, ATTRIBUTES, SpritesNet, save_sprites_net
from arvid.ranges import above, at_least

NUM_FRAMES = 17
SHORT_FRAMES = 9  # in every fourth batch, so that the network also works for other lengths
NUM_VALIDATION = 2048
LAYOUT = (2, 4, 4)
AUXILIARY_WEIGHT = 0.5
MAX_NOISE = 0.1


def main() -> None:
    """Train, validate, write the file and its record."""
    args = _parse()
    torch.manual_seed(args.seed)
    net = SpritesNet()
    began = time.monotonic()
    train(net, steps=args.steps, batch_size=args.batch_size, lr=args.lr, seed=args.seed)
    seconds = time.monotonic() - began
    net.eval()
    save_sprites_net(net, args.output, {"steps": str(args.steps), "seed": str(args.seed)})
    record = {
        "command": f"python benchmarks/demo/train_sprites_net.py --steps {args.steps} "
        f"--batch-size {args.batch_size} --lr {args.lr} --seed {args.seed}",
        "steps": args.steps,
        "batch_size": args.batch_size,
        "seed": args.seed,
        "fingerprint": Sprites(args.steps * args.batch_size, seed=args.seed).fingerprint(),
        "validation": {
            "seed": args.seed + 1,
            "clips": NUM_VALIDATION,
            **validate(net, args.seed + 1),
        },
        "parameters": sum(p.numel() for p in net.parameters()),
        "sha256": sha256_file(args.output),
        "hardware": f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)",
        "torch": torch.__version__,
        "seconds": round(seconds),
    }
    write_json(Path(args.output).with_suffix(".json"), record)
    print(json.dumps(record, indent=1))


def train(net: SpritesNet, *, steps: int, batch_size: int, lr: float, seed: int) -> None:
    """Fit `net` in place: cross-entropy of the attributes and the auxiliary regression."""
    auxiliary = nn.Linear(net.num_features, 3 * LAYOUT[0] * LAYOUT[1] * LAYOUT[2] + 2)
    parameters = [*net.parameters(), *auxiliary.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.1)
    sets = {
        frames: Sprites(steps * batch_size, seed=seed, num_frames=frames)
        for frames in (NUM_FRAMES, SHORT_FRAMES)
    }
    net.train()
    for step in range(steps):
        clips = sets[SHORT_FRAMES if step % 4 == 3 else NUM_FRAMES]
        video, labels = load(clips, range(step * batch_size, (step + 1) * batch_size))
        video, spoilt = augment(video)
        features = net.features(video)
        parts = {k: F.cross_entropy(x, labels[k]) for k, x in net.logits(features).items()}
        parts["auxiliary"] = AUXILIARY_WEIGHT * F.mse_loss(auxiliary(features), statistics(video))
        parts["spoilt"] = AUXILIARY_WEIGHT * F.mse_loss(features[:, :2], spoilt)
        optimiser.zero_grad()
        torch.stack(list(parts.values())).sum().backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(step, *(f"{k} {x.item():.3f}" for k, x in parts.items()), flush=True)


def load(clips: Sprites, indices: range) -> tuple[Float[Tensor, "b 3 t h w"], dict[str, Tensor]]:
    """Video in [-1, 1] and the index of each attribute's value."""
    batch = [clips[i] for i in indices]
    video = torch.from_numpy(np.stack([clip.video for clip in batch])).permute(0, 4, 1, 2, 3)
    labels = {
        name: torch.tensor([values.index(clip.attributes[name]) for clip in batch])
        for name, values in ATTRIBUTES.items()
    }
    return video.float() / 127.5 - 1, labels


def augment(
    video: Float[Tensor, "b 3 t h w"],
) -> tuple[Float[Tensor, "b 3 t h w"], Float[Tensor, "b 2"]]:
    """Add blur, noise and tint. Returns the video, and the strengths of blur and noise with mean 0 and variance 1.

    Half of the clips get no blur, and half get no noise.
    """
    blurring, noise = _strength(len(video)), _strength(len(video))
    shape = (len(video), 1, 1, 1, 1)
    video = video + blurring.view(shape) * (blur(video) - video)
    gain = 1 + 0.2 * (torch.rand(shape) - 0.5)
    offset = 0.3 * (torch.rand(len(video), 3, 1, 1, 1) - 0.5)
    video = video * gain + offset + MAX_NOISE * noise.view(shape) * torch.randn_like(video)
    spoilt = torch.stack([blurring, noise], dim=1)
    return video.clamp(-1, 1), (spoilt - 1 / 4) / (5 / 48) ** 0.5  # mean and variance of a strength


def _strength(num: int) -> Float[Tensor, " b"]:
    """0 for half of the clips, else uniform in 0..1."""
    return torch.rand(num) * (torch.rand(num) < 0.5)


def blur(video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t h w"]:
    """Mean over 3x3 pixels, twice; frames do not mix."""
    for _ in range(2):
        padded = F.pad(video, (1, 1, 1, 1, 0, 0), mode="replicate")
        video = F.avg_pool3d(padded, (1, 3, 3), stride=1)
    return video


def statistics(video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b k"]:
    """Targets of the auxiliary head, each of about unit scale: layout, motion energy and sharpness."""
    layout = 2 * F.adaptive_avg_pool3d(video, LAYOUT).flatten(1)
    energies = [video.diff(dim=2), video.diff(dim=4)]
    logs = [torch.log(x.abs().mean((1, 2, 3, 4)) + 0.01) for x in energies]
    return torch.cat([layout, *(x[:, None] for x in logs)], dim=1)


@torch.no_grad()
def validate(net: SpritesNet, seed: int) -> dict[str, dict[str, float]]:
    """Accuracy of each attribute on unseen clips: clean, blurred, and with fewer frames."""
    return {
        "clean": _accuracies(net, Sprites(NUM_VALIDATION, seed=seed, num_frames=NUM_FRAMES), False),
        "blurred": _accuracies(
            net, Sprites(NUM_VALIDATION, seed=seed, num_frames=NUM_FRAMES), True
        ),
        "short": _accuracies(
            net, Sprites(NUM_VALIDATION, seed=seed, num_frames=SHORT_FRAMES), False
        ),
    }


def _accuracies(net: SpritesNet, clips: Sprites, blurred: bool) -> dict[str, float]:
    right = dict.fromkeys(ATTRIBUTES, 0)
    for start in range(0, len(clips), 64):
        video, labels = load(clips, range(start, start + 64))
        logits = net.logits(net.features(blur(video) if blurred else video))
        for name, values in logits.items():
            right[name] += int((values.argmax(1) == labels[name]).sum())
    return {name: round(count / len(clips), 4) for name, count in right.items()}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=at_least(1).integer, default=1000)
    parser.add_argument("--batch-size", type=at_least(1).integer, default=64)
    parser.add_argument("--lr", type=above(0).number, default=3e-3)
    parser.add_argument("--seed", type=at_least(0).integer, default=0)
    parser.add_argument("--output", type=Path, default=ASSET, help="default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    main()
