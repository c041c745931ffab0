"""Image to video with NOVA, with and without text (arXiv 2412.14169, section 4.3, figure 6).

A NOVA that was trained only on text-to-video continues the first frame of real clips to the trained length, once with
and once without their captions. The paper shows only pictures. Here there are also metrics: PSNR, SSIM and LPIPS
against the real clip (a frame has many possible continuations, most without text), the amount of motion, and on sprites
the accuracy of attributes.

examples:
  arvid bench nova/image_to_video
  arvid bench nova/image_to_video --run runs/nova-tam/nova --data videos/

Writes table.md, results.json, index.html and figure6.png: of each clip the real one, then with and without text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from arvid.benchmarks.nova import _common as nova
from arvid.contracts import Clip
from arvid.data.sprites import Sprites
from arvid.evaluation.harness import evaluate
from arvid.evaluation.protocols import Protocol, get_protocol
from arvid.evaluation.row_kinds import ModelRow, Videos
from arvid.evaluation.rows import evaluate_references, validation_set
from arvid.experiments.paper import plain_records, write_page
from arvid.experiments.variants import REFERENCES, folders, usable
from arvid.report import tables
from arvid.report.page import write_report
from arvid.sampling.contact_sheet import write_sheet
from arvid.training.checkpoint_io import checkpoint_sha256
from arvid.training.generator_module import checkpoint_path, load_generator

NUM_CLIPS = 64
NOTES = ("Published: pictures alone (figure 6).",)


class WithoutText(ModelRow):
    """The model with only the given frame, without text."""

    def generate(self, clips: Sequence[Clip], protocol: Protocol, batch: int) -> Videos:
        silent = [dataclasses.replace(clip, caption="", label=None) for clip in clips]
        return super().generate(silent, protocol, batch)


def main() -> None:
    """Train, continue, write."""
    parser = nova.parser(__doc__ or "", "runs/nova-image-to-video")
    parser.add_argument("--run", type=Path, help="trained model: run folder or file (train one)")
    options = nova.read_arguments(parser)
    run = nova.trained_run(options)
    model = load_generator(run)
    real = validation_set(model)
    found = get_protocol(f"{nova.setting(options)}-prediction")
    protocol, notes = usable(
        dataclasses.replace(
            found,
            name="nova-image-to-video",
            summary="The first frame continued to the trained length.",
            num_clips=options.num_clips or NUM_CLIPS,
            condition_frames=1,
            metrics=(
                *("psnr", "ssim", "lpips", "motion"),
                *(("attributes",) if isinstance(real, Sprites) else ()),
            ),
        )
    )
    records = evaluate_references([run], protocol, options.out / REFERENCES)
    for name, kind in (("with text", ModelRow), ("without text", WithoutText)):
        checksum = checkpoint_sha256(checkpoint_path(run))
        row = kind(model, name, run=run, checkpoint_sha256=checksum)
        records.append(
            evaluate(row, protocol, real, options.out / name, description=model.description)
        )
    comparison = write_report(folders(records), options.out, title="Image to video with NOVA")
    trained = [r for r in records if r.row == "trained"]
    clips = nova.generated_clips(trained, 4)
    chosen = protocol.choose(real)[0][: len(clips)]
    truth = np.stack([real[i].video for i in chosen])[:, None]
    write_sheet(
        options.out / "figure6.png",
        np.concatenate([truth, clips], axis=1),
        rows=["real", *(record.name for record in trained)],
        prompts=[clip.prompt for clip in trained[0].clips[: len(clips)]],
    )
    results = {
        "scale": options.scale,
        "protocol": protocol.describe(real),
        "records": plain_records(records),
    }
    lines = [tables.markdown(comparison)]
    write_page(options.out, "NOVA: image to video", lines, [*NOTES, *notes], results)


if __name__ == "__main__":
    main()
