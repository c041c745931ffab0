"""`arvid import far`."""

from __future__ import annotations

import argparse
from pathlib import Path

from arvid.importing import Imported, Importer
from arvid.paradigms.frame_diffusion import published
from arvid.ranges import at_least


class FarImporter(Importer):
    """Import FAR: FILE is a released model, such as FAR_L_UCF101_Cond128-c6f798bf.pth. Long-context models are refused.

    Its autoencoder is a DC-AE in the layout of diffusers: put the released model_16x_c32_config.json (8x for 64 pixels,
    32x for 256) into a folder as config.json, and DCAE_UCF101_Res128-bb9d1258.pth as diffusion_pytorch_model.bin.
    """

    suffix = ".ckpt"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--tokenizer", required=True, help="its DC-AE, as pretrained:FOLDER")
        parser.add_argument(
            "--frames",
            type=at_least(1).integer,
            default=16,
            help="frames of a training clip (default: 16; 30 for BAIR)",
        )

    def run(self, file: Path, out: Path, options: argparse.Namespace) -> Imported:
        return published.import_file(
            file, out, tokenizer=options.tokenizer, num_frames=options.frames
        )
