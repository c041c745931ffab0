"""T2I-CompBench (arXiv:2307.06350) and T2I-CompBench++: eight categories, each with its own judge.

Layout FOLDER/<category>/samples/{prompt}_{000000}.png, numbered within the category. The judges read prompt and number
from the file names. Each writes a list of {question_id, answer}. A category's score is the mean answer. `complex` has
three judges; a prompt's list decides which of them count ("3-in-1").
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from arvid.errors import UserError
from arvid.evaluation.records import MetricValue, standard_error
from arvid.files import fitting_name
from arvid.suites.image_benchmarks.benchmark import Batch, ImageBenchmark, Part, ScorerRun
from arvid.suites.manifest import read_manifest
from arvid.suites.prompts import read_text

Answers = Float[np.ndarray, " images"]

IMAGES_PER_PROMPT = 10
BLIP, CLIP = "BLIP-VQA", "CLIP ViT-B/32"
SPATIAL, DEPTH, NUMERACY = "UniDet RS200", "UniDet and DPT-hybrid", "UniDet R50"
JUDGES = {
    BLIP: ("BLIPvqa_eval/BLIP_vqa.py", "--out_dir", "annotation_blip"),
    SPATIAL: (
        "UniDet_eval/2D_spatial_eval.py",
        "--outpath",
        "labels/annotation_obj_detection_2d",
    ),
    DEPTH: ("UniDet_eval/3D_spatial_eval.py", "--outpath", "labels/annotation_obj_detection_3d"),
    NUMERACY: ("UniDet_eval/numeracy_eval.py", "--outpath", "annotation_num"),
    CLIP: ("CLIPScore_eval/CLIP_similarity.py", "--outpath", "annotation_clip"),
}
"""Judge -> script, option for the category's folder, and subfolder of the answers."""
CATEGORIES: dict[str, tuple[str, ...]] = {
    "color": (BLIP,),
    "shape": (BLIP,),
    "texture": (BLIP,),
    "spatial": (SPATIAL,),
    "3d_spatial": (DEPTH,),
    "numeracy": (NUMERACY,),
    "non_spatial": (CLIP,),
    "complex": (BLIP, SPATIAL, CLIP),
}
"""Category -> its judges. 3d_spatial and numeracy belong to the ++ version."""


class T2ICompBench(ImageBenchmark):
    """T2I-CompBench++ for a row.

    Args:
        row: folder of the row.
        categories: categories to sample and score; default: all.
        prompt_lists: folder with complex_val.txt, complex_val_spatial.txt and complex_val_action.txt, needed for the
            score of `complex`.
    """

    name = "t2i-compbench"
    images_per_prompt = IMAGES_PER_PROMPT
    repository = "https://github.com/Karine-Huang/T2I-CompBench"

    def __init__(
        self,
        row: Path,
        *,
        categories: Sequence[str] = tuple(CATEGORIES),
        prompt_lists: Path | None = None,
    ) -> None:
        super().__init__(row)
        self.categories = categories
        self.prompt_lists = prompt_lists

    def parts(self, prompts: Path) -> list[Part]:
        return [self._part(c, read_prompts(prompts / f"{c}_val.txt")) for c in self.categories]

    def scored_folders(self) -> list[Path]:
        folders = [self.folder / category for category in self.categories]
        found = [folder for folder in folders if (folder / "samples").is_dir()]
        if not found:
            raise UserError(f"{self.folder} holds no images of {', '.join(self.categories)}.")
        return found

    def scorer_runs(self, scorer: Path) -> list[ScorerRun]:
        return [
            _scorer_run(scorer, folder, judge)
            for folder in self.scored_folders()
            for judge in CATEGORIES[folder.name]
        ]

    def metrics(self) -> list[MetricValue]:
        found = []
        for folder in self.scored_folders():
            answers = self._answers(folder)
            prompts = answers.reshape(-1, IMAGES_PER_PROMPT).mean(1).tolist()
            found.append(
                MetricValue(
                    name=f"t2i-{folder.name.replace('_', '-')}",
                    label=f"T2I-CompBench {folder.name.replace('_', ' ')}",
                    value=float(answers.mean()),
                    spread=standard_error(prompts),
                    spread_kind="standard error",
                    count=len(answers),
                    feature_network=", ".join(CATEGORIES[folder.name]),
                    protocol=self.name,
                )
            )
        return found

    def _part(self, category: str, prompts: Sequence[str]) -> Part:
        folder = self.folder / category
        batches = []
        for i, prompt in enumerate(prompts):
            if fitting_name(f"{prompt}_{i:06d}", ".png") != f"{prompt}_{i:06d}.png":
                raise UserError(
                    f"{category}: the prompt {prompt[:60]!r}... is too long for a file name, and the judges read the "
                    "prompt from the name. Shorten it."
                )
            numbers = range(i * IMAGES_PER_PROMPT, (i + 1) * IMAGES_PER_PROMPT)
            files = tuple(folder / "samples" / f"{prompt}_{n:06d}.png" for n in numbers)
            batches.append(Batch(prompt=prompt, files=files, num_images=IMAGES_PER_PROMPT))
        return Part(folder=folder, batches=tuple(batches))

    def _answers(self, folder: Path) -> Answers:
        judged = {j: read_answers(folder / JUDGES[j][2]) for j in CATEGORIES[folder.name]}
        manifest = read_manifest(folder)
        for judge, answers in judged.items():
            expected = manifest["num_images"] if manifest else len(next(iter(judged.values())))
            if len(answers) != expected or expected % IMAGES_PER_PROMPT:
                raise UserError(
                    f"{folder}: {JUDGES[judge][0]} judged {len(answers)} images of {expected}, "
                    f"{IMAGES_PER_PROMPT} for each prompt. Score them again."
                )
        if folder.name != "complex":
            return next(iter(judged.values()))
        if self.prompt_lists is None:
            raise UserError(
                "The score of complex needs --prompts: the folder with complex_val.txt, "
                "complex_val_spatial.txt and complex_val_action.txt "
                f"(examples/dataset of {self.repository})."
            )
        lists = {n: read_prompts(self.prompt_lists / f"{n}.txt") for n in _COMPLEX_LISTS}
        return three_in_one(judged, *lists.values())


_COMPLEX_LISTS = ("complex_val", "complex_val_spatial", "complex_val_action")


def three_in_one(
    judged: Mapping[str, Answers],
    prompts: Sequence[str],
    spatial: Sequence[str],
    action: Sequence[str],
) -> Answers:
    """The score of each image of `complex`, as in 3_in_1.py: the mean answer of the judges that count.

    Prompts of the spatial list: attribute (BLIP) and spatial. Prompts of the action list: attribute and action (CLIP).
    Other prompts: all three. Prompts are compared in lower case up to the first full stop; the spatial list has
    priority.

    Raises UserError if the numbers of prompts and images do not match.
    """
    attribute, place, action_score = judged[BLIP], judged[SPATIAL], judged[CLIP]
    if len(attribute) != len(prompts) * IMAGES_PER_PROMPT:
        raise UserError(
            f"complex: {len(attribute)} images were judged, but {len(prompts)} prompts "
            f"have {len(prompts) * IMAGES_PER_PROMPT}."
        )
    in_spatial, in_action = {_key(p) for p in spatial}, {_key(p) for p in action}
    scores = np.empty_like(attribute)
    for i, prompt in enumerate(prompts):
        images = slice(i * IMAGES_PER_PROMPT, (i + 1) * IMAGES_PER_PROMPT)
        if _key(prompt) in in_spatial:
            parts = [attribute, place]
        elif _key(prompt) in in_action:
            parts = [attribute, action_score]
        else:
            parts = [attribute, place, action_score]
        scores[images] = np.mean([part[images] for part in parts], axis=0)
    return scores


def read_answers(folder: Path) -> Answers:
    """Answers of FOLDER/vqa_result.json, sorted by question id.

    Raises UserError unless the ids are 0 to n - 1 and all answers are finite numbers.
    """
    path = folder / "vqa_result.json"
    try:
        found = json.loads(read_text(path, "the scorer's answers"))
        # BLIP's answers are strings
        answers = {int(x["question_id"]): float(x["answer"]) for x in found}
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a list of question_id and answer ({error}).") from error
    if sorted(answers) != list(range(len(found))) or not found:
        raise UserError(f"{path}: the question ids are not 0 to {len(found) - 1}, each once.")
    values = np.array([answers[i] for i in range(len(answers))])
    if not np.isfinite(values).all():
        raise UserError(f"{path}: holds answers that are not finite numbers.")
    return values


def read_prompts(path: Path) -> list[str]:
    """The prompts of a list: one per line, up to the first tab.

    Raises UserError for prompts that cannot be part of a file name, since the judges read prompts from file names.
    """
    lines = read_text(path, "the prompt list").splitlines()
    prompts = [prompt for line in lines if (prompt := line.split("\t")[0].strip())]
    for prompt in prompts:
        if "/" in prompt or "_" in prompt or len(prompt.encode()) > 200:
            raise UserError(
                f"{path}: {prompt!r} cannot be part of a file name "
                "(no slash, no underscore, at most 200 bytes)."
            )
    return prompts


def _scorer_run(scorer: Path, folder: Path, judge: str) -> ScorerRun:
    script, option, answers = JUDGES[judge]
    complex_flag = ("--complex", "True") if folder.name == "complex" and judge != BLIP else ()
    return ScorerRun(
        script=scorer / script,
        arguments=(option, str(folder), *complex_flag),
        result=folder / answers / "vqa_result.json",
        part=folder,
        images=folder / "samples",
    )


def _key(prompt: str) -> str:
    return prompt.split(".")[0].lower()
