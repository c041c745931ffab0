"""Scores: each takes what it needs from the protocol, and its numbers are those of the metric beneath."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from arvid import registry
from arvid.contracts import UserError
from arvid.evaluation.protocols import Protocol, get_protocol
from arvid.evaluation.records import over_repeats
from arvid.evaluation.scores import Score, distances, paired, scores_for
from arvid.metrics.bootstrap import bootstrap_distances, bootstrap_interval, bootstrap_std
from arvid.metrics.frechet import FeatureNetwork, frechet_distance_from_features
from arvid.metrics.kernel_distance import jedi_distance, kernel_video_distance
from arvid.metrics.paired import Psnr, Ssim
from arvid.metrics.sample_count import sample_count_curve

PROTOCOL = Protocol(
    name="p", summary="", task="generation", metrics=("fvd", "kvd"), preprocessing="nbp", ddof=0
)


class Cells(FeatureNetwork):
    """Stand-in for I3D: mean colours of a few cells. Counts how often it is asked."""

    name = "cells"
    num_features = 12
    sha256 = "ce11"
    asked = 0

    def forward(self, videos: Tensor) -> Tensor:
        type(self).asked += 1
        cells = F.adaptive_avg_pool3d(videos.permute(0, 4, 1, 2, 3).float(), (1, 2, 2))
        return cells.flatten(1)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Cells in the place of I3D; the preprocessings that were asked for."""
    wanted: list[str] = []

    def build(preprocessing: str) -> Cells:
        wanted.append(preprocessing)
        return Cells()

    for score in (distances.Fvd, distances.Kvd):
        monkeypatch.setattr(score, "build", build)
    distances._shared.cache_clear()
    Cells.asked = 0
    yield wanted
    distances._shared.cache_clear()


def videos(num: int, seed: int, frames: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, frames, 32, 32, 3), generator=generator, dtype=torch.uint8)


def measured(score: Score, generated: Tensor, real: Tensor) -> dict[str, Tensor]:
    clips: Sequence[Any] = ()
    return {**score.measure(generated, real, clips), **score.measure_real(real)}


def values(score: Score, generated: Tensor, real: Tensor) -> dict[str, float]:
    return {m.name: m.value for m in score.values(measured(score, generated, real), "p")}


def test_fvd_and_kvd_take_their_options_from_the_protocol(stand_in: list[str]) -> None:
    real, generated = videos(20, 0), videos(30, 1)
    found = scores_for(PROTOCOL)
    a, b = Cells()(real), Cells()(generated)
    Cells.asked = 0
    value, kernel = (values(found[n], generated, real)[n] for n in ("fvd", "kvd"))
    assert value == pytest.approx(float(frechet_distance_from_features(a, b, 0)))
    assert value != pytest.approx(float(frechet_distance_from_features(a, b, 1)))
    assert kernel == pytest.approx(float(kernel_video_distance(a, b)))
    assert stand_in == ["nbp"]


def test_the_network_is_asked_once_for_metrics_that_share_it() -> None:
    real, generated = videos(4, 0), videos(4, 1)
    found = scores_for(PROTOCOL).values()
    for score in found:
        score.measure(generated, real, ())
    for score in found:
        score.measure_real(real)
    assert Cells.asked == 2


def test_an_interval_holds_the_value() -> None:
    score = scores_for(PROTOCOL)["fvd"]
    (value,) = score.values(measured(score, videos(30, 1), videos(30, 0)), "p")
    assert value.interval is not None
    assert value.interval[0] <= value.value <= value.interval[1]
    assert value.spread_kind == "bootstrap"
    assert (value.count, value.feature_network, value.feature_sha256) == (30, "cells", "ce11")


def test_spread_and_interval_are_of_one_set_of_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    score = scores_for(PROTOCOL)["fvd"]
    found = measured(score, videos(30, 1), videos(30, 0))
    asked: list[int] = []

    def counted(*args: Tensor, num: int, ddof: int) -> Tensor:
        asked.append(num)
        return bootstrap_distances(*args, num=num, ddof=ddof)

    monkeypatch.setattr(distances, "bootstrap_distances", counted)
    (value,) = score.values(found, "p")
    assert asked == [200]
    sets = found["real"], found["generated"]
    # as records of before have them: the spread of 100 draws, the interval of 200
    assert value.spread == bootstrap_std(*sets, num=100, ddof=0)
    interval = bootstrap_interval(value.value, bootstrap_distances(*sets, num=200, ddof=0))
    assert value.interval == (interval.low, interval.high)


def test_rfvd_is_of_reconstructions_only() -> None:
    with pytest.raises(UserError, match="rfvd is a metric of reconstructions"):
        scores_for(dataclasses.replace(PROTOCOL, metrics=("rfvd",)))
    protocol = dataclasses.replace(PROTOCOL, metrics=("rfvd",), task="reconstruction")
    real = videos(5, 0)
    assert values(scores_for(protocol)["rfvd"], real, real) == {"rfvd": pytest.approx(0, abs=1e-6)}


def test_fvd_without_preprocessing_and_features_that_are_not_finite() -> None:
    with pytest.raises(UserError, match="fvd needs a preprocessing"):
        scores_for(dataclasses.replace(PROTOCOL, preprocessing=None))
    features = distances.Features(Cells())
    features.network.forward = lambda v: torch.full((len(v), 12), torch.nan)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="not finite"):
        features(videos(2, 0))


def test_missing_weights_are_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("ARVID_WEIGHTS", str(tmp_path))
    with pytest.raises(
        UserError,
        match=r"i3d_torchscript\.pt, which is missing\. `arvid weights get i3d-torchscript` downloads it\. By hand",
    ) as e:
        scores_for(PROTOCOL)
    assert str(tmp_path) in str(e.value)


def test_fvd_over_videomae_takes_its_ddof_from_the_protocol(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distances.FvdVideoMAE, "build", Cells)
    protocol = dataclasses.replace(PROTOCOL, metrics=("fvd-videomae",), preprocessing=None)
    real, generated = videos(20, 0), videos(30, 1)
    a, b = Cells()(real), Cells()(generated)
    for ddof in (0, 1):
        score = scores_for(dataclasses.replace(protocol, ddof=ddof))["fvd-videomae"]
        (value,) = score.values(measured(score, generated, real), "p")
        assert value.value == pytest.approx(float(frechet_distance_from_features(a, b, ddof)))
    assert (value.label, value.feature_network) == ("FVD (VideoMAE)", "cells")
    assert value.interval is not None


def test_jedi_is_the_kernel_distance_over_its_own_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances.Jedi, "build", Cells)
    protocol = dataclasses.replace(PROTOCOL, metrics=("jedi",), preprocessing=None)
    real, generated = videos(20, 0), videos(30, 1)
    score = scores_for(protocol)["jedi"]
    (value,) = score.values(measured(score, generated, real), "p")
    expected = jedi_distance(Cells()(real), Cells()(generated))
    assert value.value == pytest.approx(float(expected))
    assert (value.label, value.count, value.higher_is_better) == ("JEDi", 30, False)


@pytest.mark.parametrize(
    ("metric", "package", "file", "advice"),
    [
        ("fvd-videomae", "cdfvd", "vit_g_hybrid_pt_1200e_ssv2_ft.pth", r"arvid\[cd-fvd\]"),
        ("jedi", "vjepa", "vith16.pth.tar", "vjepa==0.1.2"),
    ],
)
def test_optional_metrics_say_what_they_lack(
    metric: str,
    package: str,
    file: str,
    advice: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
) -> None:
    """First the package, and where it is installed (here: empty modules of its names) the weights."""
    protocol = dataclasses.replace(PROTOCOL, metrics=(metric,), preprocessing=None)
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=advice):
        scores_for(protocol)
    for name in OPTIONAL_MODULES[package]:
        monkeypatch.setitem(sys.modules, name, MagicMock())
    monkeypatch.setenv("ARVID_WEIGHTS", str(tmp_path))
    with pytest.raises(
        UserError,
        match=rf"{file}, which is missing\. (`arvid weights get \S+` downloads it\. By hand: )?Get it from",
    ):
        scores_for(protocol)


OPTIONAL_MODULES = {
    "cdfvd": (
        "cdfvd",
        "cdfvd.third_party",
        "cdfvd.third_party.VideoMAEv2",
        "cdfvd.third_party.VideoMAEv2.videomaev2_finetune",
    ),
    "vjepa": ("vjepa", "vjepa.models", "vjepa.models.attentive_pooler"),
}


def test_fvd_window_by_window() -> None:
    real, generated = videos(12, 0, 40), videos(12, 1, 40)
    generated[:, :16] = real[:, :16]
    protocol = dataclasses.replace(PROTOCOL, metrics=("fvd-over-time",))
    found = values(scores_for(protocol)["fvd-over-time"], generated, real)
    assert list(found) == ["fvd-0-15", "fvd-16-31"]
    assert found["fvd-0-15"] == pytest.approx(0, abs=1e-6)
    assert found["fvd-16-31"] > 0.01


def test_fvd_extrapolated() -> None:
    real, generated = videos(80, 0, 1), videos(80, 1, 1)
    score = scores_for(dataclasses.replace(PROTOCOL, metrics=("fvd-limit",)))["fvd-limit"]
    features = measured(score, generated, real)
    limit = sample_count_curve(features["real"], features["generated"], ddof=0).limit
    assert values(score, generated, real)["fvd-limit"] == limit
    with pytest.raises(UserError, match="many more clips than the 12 features"):
        values(score, generated[:10], real[:10])


def test_paired_metrics_look_at_the_frames_and_size_of_the_protocol() -> None:
    protocol = dataclasses.replace(
        PROTOCOL, metrics=("psnr", "psnr-pooled", "ssim"), paired_frames=3, paired_size=16
    )
    real, generated = videos(4, 0), videos(4, 1)
    found = scores_for(protocol)
    small = [paired._resize(v[:, :3], 16) for v in (generated, real)]
    for name, metric in (("psnr", Psnr()), ("psnr-pooled", Psnr(pooled=True)), ("ssim", Ssim())):
        metric.update(*small)
        score = metric.compute()
        assert values(found[name], generated, real)[name] == pytest.approx(score.value)
        per_clip = found[name].per_clip(measured(found[name], generated, real))[name]
        assert sum(per_clip) / 4 == pytest.approx(score.value)
    frames = found["psnr"].frame_values(measured(found["psnr"], generated, real))["psnr"]
    assert frames.shape == (4, 3)
    assert found["psnr-pooled"].frame_values(measured(found["psnr-pooled"], generated, real)) == {}


def test_pairs_and_a_real_set_of_its_own_contradict_each_other() -> None:
    protocol = dataclasses.replace(PROTOCOL, metrics=("ssim",), num_clips=4, num_real=4)
    with pytest.raises(UserError, match="compares clip with clip"):
        scores_for(protocol)


def test_every_paired_metric_says_which_weights_it_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    files = {"lpips": "alexnet", "lpips-vgg": "vgg16", "lpips-squeeze": "squeezenet"}
    for name, file in (files | {"lpips-nbp": "vgg16"}).items():
        with pytest.raises(UserError, match=f"{file}.*which is missing"):
            registry.get("metrics", name).for_protocol(PROTOCOL)
    prediction = get_protocol("clips-prediction")
    with pytest.raises(UserError, match="counts given frames too"):
        registry.get("metrics", "lpips-nbp").for_protocol(prediction)


def test_ms_ssim() -> None:
    large = torch.randint(0, 256, (2, 1, 176, 176, 3), dtype=torch.uint8)
    score = scores_for(dataclasses.replace(PROTOCOL, metrics=("ms-ssim",)))["ms-ssim"]
    assert values(score, large, large) == {"ms-ssim": pytest.approx(1)}


def test_numbers_over_folds() -> None:
    score = scores_for(PROTOCOL)["kvd"]
    folds = [score.values(measured(score, videos(9, s), videos(9, 9)), "p") for s in range(3)]
    (value,) = over_repeats(folds, "deviation of folds")
    singles = [fold[0].value for fold in folds]
    assert value.value == pytest.approx(sum(singles) / 3)
    assert value.spread == pytest.approx(float(torch.tensor(singles).double().std()))
    assert value.folds == tuple(singles)
    assert value.standard_error == pytest.approx((value.spread or 0) / 3**0.5)
    assert value.spread_kind == "deviation of folds"
    assert over_repeats(folds[:1], "deviation of folds") == tuple(folds[0])
