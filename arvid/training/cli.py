"""`arvid fit` and `arvid validate`: LightningCLI with arvid's conventions.

Configurations compose (several --config, later ones win) and have short names. A run has one folder. It always logs to
CSV, besides other loggers. The same command, given again, resumes an interrupted run.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    ArgumentError,
    Namespace,
    get_loader,
    set_loader,
    set_parsing_settings,
)
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy

from arvid.contracts import UserError
from arvid.data.datamodule import VideoDataModule
from arvid.data.guard import Findings
from arvid.processes import best_device, child_environment, launch
from arvid.training._explain import explain, is_configuration_error
from arvid.training.callbacks import SeedEachStep, StepBar, Throughput
from arvid.training.data_guard import DataGuard, look_at_data
from arvid.training.finite import SkipNonfinite
from arvid.training.generator_module import GeneratorModule, checkpoint_path
from arvid.training.global_batch import CountSteps, clips_per_step_of_older
from arvid.training.health import Health
from arvid.training.keys import LAST_CHECKPOINT
from arvid.training.leaving import LeaveOnSignal, leave_at_once
from arvid.training.option_ranges import check_options
from arvid.training.precision import slow_precision
from arvid.training.run_lock import run_lock
from arvid.training.saving import SaveLast, require_training
from arvid.training.setting import describe_run, describe_tokenizer_run, unregistered
from arvid.training.summary import closing, opening
from arvid.training.tokenizer_module import TokenizerModule
from arvid.training.wandb_run import LogConfiguration, continue_wandb
from arvid.trust import trust, trusting
from arvid.yaml_files import check_yaml, load_yaml

logger = logging.getLogger(__name__)
set_parsing_settings(import_path_denylist=[])  # enforces jsonargparse's own: os, subprocess, ...

SEALED_IO = "arvid.training.checkpoint_io.SealedCheckpointIO"
LIGHTNINGS_OWN = ("best", "last", "hpc")
"""Values of --ckpt_path that are keywords, not paths: Lightning finds the files."""
SAMPLING = "model.init_args.sampling"
CALLBACKS = "trainer.callbacks"
CSV_LOGGER = "lightning.pytorch.loggers.CSVLogger"


class _ConfigFile(ActionConfigFile):
    """`--config`. Several files are merged where jsonargparse itself would replace: sampling options and callbacks."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: Any = None) -> None:
        before, callbacks = cfg.get(SAMPLING), _listed(cfg.get(CALLBACKS))
        if callbacks:
            # None distinguishes a file without callbacks from a file with the same ones.
            cfg[CALLBACKS] = None
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]
        after = cfg.get(SAMPLING)
        if isinstance(before, dict) and isinstance(after, dict):
            cfg[SAMPLING] = {**before, **after}
        if callbacks and cfg.get(CALLBACKS) != []:
            cfg[CALLBACKS] = merged_callbacks(callbacks, _listed(cfg.get(CALLBACKS)))


def merged_callbacks(earlier: Sequence[Any], later: Sequence[Any]) -> list[Any]:
    """The callbacks of two configurations: those of `later`, and those of `earlier` of other classes, which come first.

    A callback is a mapping with the key `class_path`.
    """
    replaced = {callback["class_path"] for callback in later}
    return [*(c for c in earlier if c["class_path"] not in replaced), *later]


class ArvidCLI(LightningCLI):
    """LightningCLI with a run folder (`--run`) and arvid's callbacks. It gives the data's properties to the model.

    Args:
        held: contexts that stay open until the command ends, such as the lock of the run folder.
    """

    def __init__(self, *args: Any, held: ExitStack, **kwargs: Any) -> None:
        self._held = held
        super().__init__(*args, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only the subcommand that was given: building the parsers of all takes longer than parsing."""
        known = LightningCLI.subcommands()
        return {name: skipped for name, skipped in known.items() if name in sys.argv[1:2]}

    def setup_parser(self, add_subcommands: bool, *args: Any) -> None:
        """The parser. Without a subcommand it also takes the options of `fit` that a run's config.yaml holds."""
        super().setup_parser(add_subcommands, *args)
        if not add_subcommands:
            self.parser.add_argument("--ckpt_path", type=str | None, default=None)
            self.parser.add_argument("--weights_only", type=bool | None, default=None)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser with `--config` only."""
        kwargs.setdefault("dump_header", [f"lightning.pytorch=={lightning.__version__}"])
        parser = LightningArgumentParser(**kwargs)
        parser.add_argument(
            "-c", "--config", action=_ConfigFile, help="Configuration, by name or path."
        )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run",
            type=str,
            default="runs/latest",
            help="Folder of this run. If it holds an interrupted run, that run is resumed.",
        )
        parser.add_argument(
            "--save_every_n_steps", type=int, default=500, help="Steps between two checkpoints."
        )
        parser.add_argument(
            "--keep_checkpoints",
            type=int,
            default=3,
            help="How many of the newest checkpoints are kept in the run's folder.",
        )
        parser.add_argument(
            "--allow_changes",
            type=bool,
            default=False,
            help="Resume although the setting differs from the checkpoint's. The new setting records the changes.",
        )
        parser.add_argument(
            "--trust",
            type=list[str],
            default=[],
            help="Packages whose classes may be imported when a checkpoint of another run names them.",
        )
        parser.add_argument(
            "--wait_minutes",
            type=float,
            default=30.0,
            help="Minutes that a process waits for the others before it fails.",
        )
        for name in ("clip_shape", "num_classes", "value_names"):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Raises UserError for values outside an option's range, many of which Lightning accepts."""
        super().parse_arguments(parser, args)
        check_options(self._config)

    def _dump_config(self) -> None:
        """As Lightning's, which gives it to modules that call `save_hyperparameters`, but not validated once more."""
        if not hasattr(self, "config_dump"):
            dumped = self.parser.dump(
                self.config,
                skip_link_targets=False,
                skip_unset=False,
                skip_validation=True,
                format="yaml",
            )
            found = yaml.safe_load(dumped)
            self.config_dump = found[self.subcommand] if self.subcommand else found

    def before_instantiate_classes(self) -> None:
        config = self._config
        run = Path(config.run)
        trust(config.trust)
        config.trainer.default_root_dir = str(run)
        config.trainer.use_distributed_sampler = False  # the datamodule has its own sampler
        config.trainer.plugins = _with(config.trainer.plugins, Namespace(class_path=SEALED_IO))
        config.trainer.logger = _with(config.trainer.logger, _csv_logger(run))
        continue_wandb(config.trainer.logger if self.subcommand == "fit" else [], run)
        _complete_slurm()
        if self.subcommand and config.trainer.devices == "auto":
            _choose_devices(config.trainer, config.data.clips_per_step)
        finite = SkipNonfinite()
        saver = SaveLast(
            config.save_every_n_steps, config.keep_checkpoints, in_doubt=finite.in_doubt
        )
        # Lightning moves SaveLast (a Checkpoint) to the end: it saves after `finite` has judged the step.
        self.trainer_defaults["callbacks"] = [
            SeedEachStep(int(config.seed_everything or 0)),
            CountSteps(),
            finite,
            saver,
            DataGuard(),
            StepBar(),
            Throughput(),
            Health(),
            LogConfiguration(config.clone().as_dict()),
            LeaveOnSignal(saver),
        ]

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        if self.subcommand == "fit":
            self._share_steps()
        _limit_waiting(self.trainer, timedelta(minutes=self._config.wait_minutes))
        if self.trainer.strategy.root_device.type == "cpu":
            slow = slow_precision(self.trainer.precision)
            if slow:
                logger.warning(slow)
        if isinstance(self.model, GeneratorModule | TokenizerModule):
            self.model.description = self._describe()
            self.model.allow_changes = self._config.allow_changes

    def _describe(self) -> dict[str, Any]:
        """Setting of the run; for a generator also the configuration that builds it again."""
        plain = self._config.clone().as_dict()
        data, num_processes = self.datamodule, self.trainer.world_size
        if isinstance(self.model, TokenizerModule):
            return describe_tokenizer_run(
                plain,
                data.train,
                data.val,
                clip_shape=data.clip_shape,
                num_processes=num_processes,
            )
        plain["model"]["init_args"].update(
            clip_shape=list(data.clip_shape),
            num_classes=data.num_classes,
            value_names=data.value_names,
        )
        description = describe_run(
            plain,
            data.train,
            data.val,
            num_processes=num_processes,
            loaded=self.model.tokenizer,
        )
        for path in unregistered(description):
            logger.warning(
                "No installed package registers %s: to load this run's checkpoints will need --trust %s.",
                path,
                path.partition(".")[0],
            )
        return description

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Raises UserError for options that Lightning refuses, such as an unknown accelerator or precision."""
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"trainer: {' '.join(str(error).split())}") from error

    def _share_steps(self) -> None:
        older = clips_per_step_of_older(Path(self._config.run), self.trainer.world_size)
        if older and self._config.data.clips_per_step:
            self._config.data.clips_per_step = self.datamodule.clips_per_step = older
        self.datamodule.share_steps(self.trainer)

    def before_fit(self) -> None:
        """Lock the run folder, find the checkpoint to resume from, and print what will be trained."""
        if self.trainer.is_global_zero:
            self._held.enter_context(run_lock(Path(self._config.run)))
        self.before_validate()
        if self.trainer.is_global_zero:
            every = self._config.save_every_n_steps
            print(
                opening(self.model, self.datamodule, self.trainer, save_every_n_steps=every),
                flush=True,
            )

    def after_fit(self) -> None:
        """Print what was reached and which commands come next."""
        if not self.trainer.is_global_zero:
            return
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it elsewhere
        seconds = next(c.seconds for c in callbacks if isinstance(c, Throughput))
        configs = [str(path) for path in self._config.config or ()]
        print(closing(self.model, self.datamodule, self.trainer, seconds=seconds, configs=configs))

    def before_validate(self) -> None:
        """Find the checkpoint to resume from."""
        self._held.enter_context(_ranks_start_as_we_did())
        self._resume()

    @property
    def _config(self) -> Namespace:
        """The configuration of the subcommand that was given."""
        subcommand = self.config.get("subcommand")
        config: Namespace = self.config[subcommand] if subcommand else self.config
        return config

    def _parse_ckpt_path(self) -> None:
        """Check --ckpt_path before anything is built. (Lightning's method would import a class named in the file.)"""
        given = self._config.get("ckpt_path")
        if given is not None and given not in LIGHTNINGS_OWN:
            path = checkpoint_path(given)
            require_training(path)
            self._config["ckpt_path"], self._config["weights_only"] = str(path), True

    def _resume(self) -> None:
        """Resume from the run folder's last checkpoint, if there is one and --ckpt_path is not given."""
        last = Path(self._config.run) / LAST_CHECKPOINT
        # A link to a checkpoint that is gone must not begin the run anew: that would remove the other checkpoints.
        if self._config.get("ckpt_path") is None and os.path.lexists(last):
            require_training(last)  # fails before the clips are encoded
            if self.trainer.is_global_zero:
                print(f"Resuming from {last}.")
            for holder in (self.config[self.subcommand], self.config_init[self.subcommand]):
                holder["ckpt_path"] = str(last)
                holder["weights_only"] = True


class _Parsed(ArvidCLI):
    """The parsed configuration alone: nothing is seeded, built or run."""

    def plain(self) -> dict[str, Any]:
        """The configuration as plain data."""
        plain: dict[str, Any] = self._config.clone().as_dict()
        return plain

    def _set_seed(self) -> None: ...

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


def run_lightning(arguments: Sequence[str]) -> None:
    """Run `fit` or `validate` with the arguments of the command line."""
    torch.set_float32_matmul_precision("high")
    try:
        with leave_at_once():
            _lightning_cli(arguments, run=True)
    except FloatingPointError as error:
        raise UserError(str(error)) from error


def encode_clips(
    configs: Sequence[str], *, out: Path | None = None, share: tuple[int, int] = (0, 1)
) -> dict[Path, int]:
    """Encode the clips of a `fit` configuration with its tokenizer; see `VideoDataModule.encode`."""
    model, data = build_generator_and_data(configs)
    return data.encode(model, out=out, share=share, device=best_device())


def parse_fit(arguments: Sequence[str]) -> dict[str, Any]:
    """The configuration of `arvid fit` with these arguments, as plain data. Nothing is built, no file is read but YAML.

    Raises UserError as `arvid fit` does.
    """
    given, sys.argv = sys.argv, [sys.argv[0], "fit", *resolve_configs(list(arguments))]
    try:
        with trusting(()), _explained(), ExitStack() as held:
            cli = _build_cli(run=True, held=held, kind=_Parsed)
            assert isinstance(cli, _Parsed)
            return cli.plain()
    finally:
        sys.argv = given


def check_data(configs: Sequence[str]) -> list[Findings]:
    """Check the clips of a `fit` configuration; see `arvid.data.guard`."""
    cli = _build(configs)
    return look_at_data(cli.model.to(best_device()), cli.datamodule, encode=True)


def build_generator_and_data(
    configs: Sequence[str], options: Sequence[str] = ()
) -> tuple[GeneratorModule, VideoDataModule]:
    """The untrained generator and the data of a `fit` configuration. `options` are those of the command line.

    Raises UserError for a configuration of something else.
    """
    cli = _build(configs, options)
    if not isinstance(cli.model, GeneratorModule):
        raise UserError(f"{' '.join(configs)}: this is not the configuration of a generator.")
    return cli.model, cli.datamodule


def _build(configs: Sequence[str], options: Sequence[str] = ()) -> ArvidCLI:
    """Model and data of a `fit` configuration, without training."""
    named = [part for name in configs for part in ("--config", name)]
    return _lightning_cli([*named, *options], run=False)


def _lightning_cli(arguments: Sequence[str], *, run: bool) -> ArvidCLI:
    for name in ("lightning.pytorch", "lightning.fabric"):  # hardware that is absent, tips
        logging.getLogger(name).setLevel(logging.WARNING)
    given, sys.argv = sys.argv, [sys.argv[0], *resolve_configs(list(arguments))]
    try:
        with trusting(()), _explained(), ExitStack() as held:
            return _build_cli(run=run, held=held)
    finally:
        sys.argv = given


@contextmanager
def _explained() -> Iterator[None]:
    """Turn errors of jsonargparse and Lightning about a configuration into readable UserErrors."""
    try:
        yield
    except UserError:
        raise
    except (ArgumentError, ValueError) as error:
        if not is_configuration_error(error):
            raise
        raise UserError(explain(str(error))) from error
    except MisconfigurationException as error:  # the trainer finds some only when fitting starts
        raise UserError(" ".join(str(error).split())) from error


def _build_cli(*, run: bool, held: ExitStack, kind: type[ArvidCLI] = ArvidCLI) -> ArvidCLI:
    """Build the CLI. Arguments are in `sys.argv`: LightningCLI warns if they are passed in another way."""
    return kind(
        LightningModule,
        VideoDataModule,
        subclass_mode_model=True,
        trainer_defaults=dict(_TRAINER_DEFAULTS),
        save_config_callback=SaveConfigCallback,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        run=run,
        held=held,
        parser_kwargs={name: {"exit_on_error": False} for name in ArvidCLI.subcommands()}
        | {"exit_on_error": False, "prog": "arvid"},
    )


_TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": -1,  # a run's length is a number of steps
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}


def _choose_devices(trainer: Namespace, clips_per_step: int | None) -> None:
    """Default number of devices: one for each process of torchrun or srun, else all GPUs that can share a step."""
    count = launch().num_processes
    if count > 1:
        nodes = int(os.environ.get("GROUP_WORLD_SIZE", os.environ.get("SLURM_NNODES", 1)))
        trainer.num_nodes, trainer.devices = nodes, count // nodes
    elif clips_per_step and trainer.accelerator in ("auto", "gpu", "cuda"):
        found = max(torch.cuda.device_count(), 1)
        able = max(n for n in range(1, found + 1) if clips_per_step % n == 0)
        if able < found:
            logger.warning(
                "%d of %d GPUs are used: the %d clips of a step (data.clips_per_step) cannot be shared by all.",
                able,
                found,
                clips_per_step,
            )
            trainer.devices = able


def _complete_slurm() -> None:
    """Under srun: set the variables that Lightning reads and `srun --ntasks` does not set."""
    rank, count, _ = launch()
    if count == 1 or "RANK" in os.environ:
        return
    per_node = count // int(os.environ.get("SLURM_NNODES", 1))
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(per_node))
    os.environ.setdefault("SLURM_NODEID", str(rank // per_node))


def _limit_waiting(trainer: Trainer, limit: timedelta) -> None:
    """Set how long a process waits for the others. Lightning has no option for it if a strategy is given by name."""
    if isinstance(trainer.strategy, DDPStrategy | FSDPStrategy | ModelParallelStrategy):
        trainer.strategy._timeout = limit


@contextmanager
def _ranks_start_as_we_did() -> Iterator[None]:
    """Inside the block, Lightning starts the machine's other ranks by a command line of arvid; they end with this one.

    Lightning repeats this process's own command, `python PROGRAM` or `python -m MODULE`. If that is other code that
    calls `arvid.cli.main`, the ranks are started as `python -m arvid` instead.
    """
    os.environ.update(child_environment())
    main = sys.modules["__main__"]
    given = main.__spec__
    module = given.name.partition(".")[0] if given else Path(sys.argv[0]).name
    if module != "arvid":
        main.__spec__ = importlib.util.find_spec("arvid.__main__")
    try:
        yield
    finally:
        main.__spec__ = given
        for name in child_environment():
            os.environ.pop(name, None)


def resolve_configs(arguments: list[str]) -> list[str]:
    """Replace the value of each --config by the path of an existing file; see `find_config`."""
    resolved = list(arguments)
    for i, argument in enumerate(arguments):
        if argument == "--config" and i + 1 < len(arguments):
            resolved[i + 1] = str(find_config(arguments[i + 1]))
        elif argument.startswith("--config="):
            resolved[i] = f"--config={find_config(argument.removeprefix('--config='))}"
    return resolved


def find_config(name: str) -> Path:
    """A configuration file by its path, or by the short name of one that arvid brings: 'settings/sprites'."""
    if os.path.isfile(name):
        load_yaml(name)
        return Path(name)
    folder = Path(str(files("arvid"))) / "configs"
    known = {
        str(path.relative_to(folder).with_suffix("")): path for path in folder.glob("*/*.yaml")
    }
    short = name.removeprefix("configs/").removesuffix(".yaml")
    if short in known:
        return known[short]
    close = difflib.get_close_matches(short, known, n=1)
    suggestion = f" Did you mean {close[0]!r}?" if close else ""
    kind = short.partition("/")[0]  # a list of all kinds would hide the suggestion
    listed = sorted(n for n in known if n.startswith(f"{kind}/")) or sorted(known)
    raise UserError(
        f"There is no configuration {name!r}.{suggestion} Those that come with arvid: {', '.join(listed)}."
    )


_parse_yaml = get_loader("yaml")


def _parse_checked_yaml(text: str) -> Any:
    """Parse YAML after `check_yaml`. jsonargparse uses this for configurations, files named in them, and options."""
    check_yaml(text)
    return _parse_yaml(text)


set_loader("yaml", _parse_checked_yaml, (yaml.YAMLError,))


def _listed(configured: Any) -> list[Any]:
    """Loggers or plugins of the configuration as a list. true, false and null mean: only arvid's own."""
    if configured is None or isinstance(configured, bool):
        return []
    return list(configured) if isinstance(configured, list) else [configured]


def _with(configured: Any, own: Namespace) -> list[Any]:
    """The configured loggers or plugins and arvid's own. A run's config.yaml holds arvid's already: it is replaced."""
    return [*(entry for entry in _listed(configured) if not _is_same_kind(entry, own)), own]


def _is_same_kind(entry: Any, own: Namespace) -> bool:
    """Whether an entry has the class of `own` and, for a logger, its name."""
    if isinstance(entry, str) or entry.get("class_path") != own.class_path:
        return False
    return _name_of(entry) == _name_of(own)


def _name_of(entry: Any) -> Any:
    return (entry.get("init_args") or {}).get("name")


def _csv_logger(run: Path) -> Namespace:
    options = Namespace(save_dir=str(run), name="logs", flush_logs_every_n_steps=1)
    return Namespace(class_path=CSV_LOGGER, init_args=options)
