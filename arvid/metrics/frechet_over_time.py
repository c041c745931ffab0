"""The Fréchet distance window by window along a clip: where a long roll-out drifts away from the real clips."""

from __future__ import annotations

from collections.abc import Iterator

from jaxtyping import UInt8
from torch import Tensor, nn

from arvid.contracts import UserError
from arvid.metrics.frechet import FeatureNetwork, FrechetDistance


class FrechetOverTime(nn.Module):
    """Distance of each window of generated clips to the same window of real ones.

    Windows lie at 0, stride, 2 * stride, ... as far as they fit; frames after the last are not seen.

    Args:
        network: the feature network, shared by all windows.
        num_frames: frames of the clips.
        window: frames of each window.
        stride: frames from one window to the next.
        ddof: as `FrechetDistance` has it. Moments are kept, not features: memory does not grow with the clips.

    Raises UserError if no window fits.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        *,
        num_frames: int,
        window: int = 16,
        stride: int = 16,
        ddof: int = 1,
    ) -> None:
        super().__init__()
        if not 1 <= window <= num_frames or stride < 1:
            raise UserError(
                f"A window of {window} frames every {stride} does not fit clips of {num_frames} frames."
            )
        self.num_frames = num_frames
        self.window = window
        self.starts = tuple(range(0, num_frames - window + 1, stride))
        self.distances = nn.ModuleList(
            FrechetDistance(network, ddof=ddof, keep_features=False) for _ in self.starts
        )

    def update(self, videos: UInt8[Tensor, "b t h w 3"], real: bool) -> None:
        """Add clips of the real (or else the generated) set. Raises ValueError for another number of frames."""
        if videos.shape[1] != self.num_frames:
            raise ValueError(f"Clips must have {self.num_frames} frames, got {videos.shape[1]}.")
        for start, distance in self._windows():
            distance.update(videos[:, start : start + self.window], real=real)

    def compute(self) -> dict[int, float]:
        """First frame of each window -> its distance. Raises ValueError as `FrechetDistance`."""
        return {start: float(distance.compute()) for start, distance in self._windows()}

    def _windows(self) -> Iterator[tuple[int, FrechetDistance]]:
        for start, distance in zip(self.starts, self.distances, strict=True):
            assert isinstance(distance, FrechetDistance)
            yield start, distance
