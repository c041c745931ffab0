"""Training curves out of the CSV logs of a run, be it in one piece or several."""

from __future__ import annotations

from pathlib import Path

from arvid.evaluation.curves import MAX_POINTS, read_curve


def write_log(run: Path, version: int, text: str) -> None:
    folder = run / "logs" / f"version_{version}"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(text)


def test_training_and_validation_losses_of_a_step_are_one_point(tmp_path: Path) -> None:
    rows = "step,train_per_token,val_per_token,seconds\n9,1.5,,3\n9,,1.75,\n4,2.5,,1\n"
    write_log(tmp_path, 0, rows)
    assert read_curve(tmp_path) == (
        {"step": 4.0, "train_loss": 2.5},
        {"step": 9.0, "train_loss": 1.5, "val_loss": 1.75},
    )


def test_the_later_log_counts_where_a_run_was_interrupted(tmp_path: Path) -> None:
    write_log(tmp_path, 2, "step,train_per_token\n1,20\n2,30\n")
    write_log(tmp_path, 10, "step,train_per_token\n2,31\n3,40\n")  # 10 comes after 2
    assert [point["train_loss"] for point in read_curve(tmp_path)] == [20, 31, 40]


def test_long_curves_are_thinned_but_keep_their_validations(tmp_path: Path) -> None:
    rows = [f"{s},{s / 10},{'7' if s % 500 == 499 else ''}" for s in range(5000)]
    write_log(tmp_path, 0, "step,train_per_token,val_per_token\n" + "\n".join(rows))
    curve = read_curve(tmp_path)
    assert len(curve) <= MAX_POINTS + 10
    assert [p["step"] for p in curve if "val_loss" in p] == [499 + 500 * i for i in range(10)]
    assert curve[0]["step"] == 0


def test_what_is_not_a_number_is_left_out(tmp_path: Path) -> None:
    write_log(tmp_path, 0, "step,train_per_token,val_per_token\n0,nan,\n1,inf,2\n2,3,\n")
    assert read_curve(tmp_path) == (
        {"step": 1.0, "val_loss": 2.0},
        {"step": 2.0, "train_loss": 3.0},
    )


def test_a_run_without_logs_has_no_curve(tmp_path: Path) -> None:
    assert read_curve(tmp_path) == ()
    write_log(tmp_path, 0, "")
    assert read_curve(tmp_path) == ()


def test_a_real_run_has_both_losses(trained_run: Path) -> None:
    curve = read_curve(trained_run)
    assert [point["step"] for point in curve if "train_loss" in point] == [0, 1, 2]
    assert any("val_loss" in point for point in curve)


def test_losses_by_latent_frame_are_those_of_the_validations(tmp_path: Path) -> None:
    head = "step,train_per_token,val_per_token,train_frame_0,val_frame_0,val_frame_1"
    write_log(tmp_path, 0, f"{head}\n3,1,,9,,\n3,,2,,2.5,1.5\n")
    point = {"step": 3.0, "train_loss": 1.0, "val_loss": 2.0}
    assert read_curve(tmp_path) == (point,)
    assert read_curve(tmp_path, by_frame=True) == (
        {**point, "val_frame_0": 2.5, "val_frame_1": 1.5},
    )
