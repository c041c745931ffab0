"""The rows of the matrix: every order of prediction with every token type, for every size and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from arvid.contracts import TokenType
from arvid.experiments.variants import Variant

MODEL = "--model.init_args"
PARADIGM = f"{MODEL}.paradigm.init_args"
TOKEN_TYPES: tuple[TokenType, ...] = ("continuous", "discrete")


@dataclass(frozen=True, kw_only=True)
class Order:
    """One order of prediction: a configuration of a paradigm."""

    config: str
    """File of configs/paradigms."""
    options: tuple[str, ...] = ()
    """Options of `arvid fit`."""
    longer: bool = True
    """Whether it can generate clips longer than trained."""


ORDERS = {
    "next_token": Order(config="next_token"),
    "next_block": Order(config="next_block"),
    "next_block-1x1x4": Order(config="next_block", options=(f"{PARADIGM}.block=[1,1,4]",)),
    "next_block-square": Order(config="next_block", options=(f"{PARADIGM}.block=[1,4,4]",)),
    # NOVA's default patch depends on the token type. Equal patches give both types equally many tokens.
    "nova": Order(config="nova", options=(f"{PARADIGM}.patch=1",)),
    "nova-without-TAM": Order(
        config="nova", options=(f"{PARADIGM}.patch=1", f"{PARADIGM}.tam=false")
    ),
    "masked": Order(config="masked", longer=False),
    "next_scale": Order(config="next_scale"),
    "frame_diffusion": Order(config="frame_diffusion"),
    "full_sequence": Order(config="full_sequence"),
}
CORE = ("next_token", "next_block", "nova", "masked", "frame_diffusion")


@dataclass(frozen=True, kw_only=True)
class MatrixSize:
    """Size of a network: a file of configs/sizes, and the width of the diffusion head for that size."""

    config: str
    head_dim: int | None = None
    """The published models' heads are 1.0 to 1.4 times as wide as their transformers. None: as in the file."""


SIZES = {
    size.config: size
    for size in (
        MatrixSize(config="debug"),
        MatrixSize(config="d4w64", head_dim=96),
        MatrixSize(config="d5w96", head_dim=128),
        MatrixSize(config="tiny", head_dim=176),
        MatrixSize(config="d8w384", head_dim=512),
        MatrixSize(config="d12w512", head_dim=640),
        MatrixSize(config="d12w768", head_dim=1024),
        MatrixSize(config="d48w1024"),
    )
}


@dataclass(frozen=True, kw_only=True)
class MatrixRow:
    """One training: an order with a token type, a size and a seed."""

    order: str
    token_type: TokenType
    size: str
    seed: int
    setting: str
    """Name in configs/settings."""
    extra: tuple[str, ...] = ()
    """Options of `arvid fit` that make the budgets equal."""
    names_size: bool = False
    """Whether the name has the size, which it needs where there are several."""
    names_seed: bool = True
    """Whether the name has the seed."""

    @property
    def name(self) -> str:
        """Name of the row and its folder. Rows that differ only in the seed are merged by the report."""
        size = f"-{self.size}" if self.names_size else ""
        return f"{self.cell}{size}" + (f"-s{self.seed}" if self.names_seed else "")

    @property
    def cell(self) -> str:
        """Name without size and seed."""
        return f"{self.order}-{self.token_type}"

    @property
    def configs(self) -> tuple[str, ...]:
        """Configurations of `arvid fit`."""
        config = ORDERS[self.order].config
        return (f"settings/{self.setting}", f"paradigms/{config}", f"sizes/{self.size}")

    @property
    def options(self) -> tuple[str, ...]:
        """Options of `arvid fit`, without those that make the budgets equal."""
        head = SIZES[self.size].head_dim
        return (
            *ORDERS[self.order].options,
            f"{MODEL}.token_type={self.token_type}",
            *(
                (f"{MODEL}.size.head_dim={head}",)
                if head and self.token_type == "continuous"
                else ()
            ),
        )

    def variant(self, shared: Sequence[str]) -> Variant:
        """The row as a training. `shared` are options of all rows; those that make budgets equal win over them."""
        seeds = (f"--seed_everything={self.seed}", f"--data.seed={self.seed}")
        return Variant(
            name=self.name,
            configs=self.configs,
            options=(*self.options, *seeds, *shared, *self.extra),
        )


def all_rows(
    orders: Sequence[str],
    token_types: Sequence[TokenType],
    sizes: Sequence[str],
    seeds: int,
    setting: str,
) -> list[MatrixRow]:
    """All combinations. The first seed of every combination comes first, so that an early look shows all of them.

    Continuous tokens come before discrete ones: their trainings take longer, and the longest should begin first.
    """
    return [
        MatrixRow(
            order=order,
            token_type=token_type,
            size=size,
            seed=seed,
            setting=setting,
            names_size=len(sizes) > 1,
        )
        for seed, size, token_type, order in product(range(seeds), sizes, token_types, orders)
    ]
