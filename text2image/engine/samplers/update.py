"""Samples on their way through their tables, and the one update that takes all of them a call further.

A sample's tensors are of shape (1, C, h, w) and in fp32; where they are is the caller's choice. Latents that a call
makes are parts of one tensor for all rows, so nothing is copied to hand them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from text2image.engine import devices
from text2image.engine.samplers.tables import Table


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """The part of a picture that is not drawn anew: (1, C, h, w) of the picture and the noise that it began with.

    Attributes:
        mask: (1, 1, h, w), true where it is drawn anew.
    """

    picture: torch.Tensor
    noise: torch.Tensor
    mask: torch.Tensor

    def put_back(self, latents: torch.Tensor, signal: float, spread: float) -> torch.Tensor:
        """Latents with these shares of picture and noise outside the mask."""
        return torch.where(self.mask, latents, signal * self.picture + spread * self.noise)


class Trajectory:
    """One sample between two network calls: where it is, and as much of its past as its table looks back on.

    Attributes:
        table: what it goes by.
        call: network calls made and taken in.
        latents: as they are to be fed to the next call.
        condition: (1, D, h, w), which the network takes beside the latents, unscaled; None if there is none.
    """

    def __init__(
        self,
        table: Table,
        latents: torch.Tensor,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
        *,
        kept: Kept | None = None,
        condition: torch.Tensor | None = None,
    ) -> None:
        """Begins with latents that have the noise of the first call: `table.noise_scale` times noise, or a picture's.

        Args:
            generator: the sample's own, on the CPU, so that its noise is the same on every device.
            dtype: the network's; diffusers draws noise in it, and each precision has numbers of its own.
            kept: what is put back after each call. Inside its mask the latents fed are those that were produced, so
                the table's terms hold there, and outside of it nothing of them stays.
        """
        self.table = table
        self.call = 0
        self.latents = latents
        self.condition = condition
        self._kept = kept
        self._generator = generator
        self._dtype = torch.float32 if table.single else dtype
        # Of the calls made, the newest first.
        self._fed: list[torch.Tensor] = []
        self._outputs: list[torch.Tensor] = []
        self._noise: torch.Tensor | None = None

    @property
    def done(self) -> bool:
        """Whether the latents are finished."""
        return self.call >= self.table.calls

    @property
    def timestep(self) -> float:
        """The training timestep of the next call."""
        return self.table.timesteps[self.call]

    @property
    def input_scale(self) -> float:
        """What the latents are multiplied with to be the next call's input."""
        return self.table.input_scales[self.call]

    @property
    def predicted(self) -> torch.Tensor:
        """The clean latents (1, C, h, w) that the last call stands for; before the first, the latents."""
        if not self.call:
            return self.latents
        of_latents, of_output = self.table.predicted[self.call - 1].tolist()
        predicted: torch.Tensor = of_latents * self._fed[0] + of_output * self._outputs[0]
        return predicted

    def along(self, table: Table) -> Trajectory:
        """The way on by another table from where this one is; its noise goes on too."""
        return Trajectory(table, self.latents, self._generator, self._dtype)

    def draw(self) -> None:
        """Draws the noise that the next update takes in, where it takes any, unless it was drawn already.

        Apart from the update, so that one that failed can be tried again with the same noise.
        """
        if self.table.draws[self.call] and self._noise is None:
            self._noise = torch.randn(
                self.latents.shape, generator=self._generator, dtype=self._dtype
            )

    def summands(self, output: torch.Tensor) -> tuple[list[torch.Tensor], list[float]]:
        """What the next latents are the sum of, and the weights; what weighs nothing is left out, but one at least."""
        of_latents, of_outputs, of_noise = self.table.terms[self.call]
        weighed = [
            *zip([self.latents, *self._fed], of_latents, strict=False),
            *zip([output, *self._outputs], of_outputs, strict=False),
        ]
        if self._noise is not None:
            noise = devices.moved(self._noise.float(), self.latents.device)
            weighed.append((noise, of_noise))
        kept = [pair for pair in weighed if pair[1]] or [(self.latents, 0.0)]
        return [tensor for tensor, _ in kept], [weight for _, weight in kept]

    def take(self, latents: torch.Tensor, output: torch.Tensor) -> None:
        """Goes on with the latents that the update made of a call's output."""
        # The call just made is kept for its preview, even where the sampler forgets it.
        back = max(1, self.table.reach - 1)
        self._fed = [self.latents, *self._fed][:back]
        self._outputs = [output, *self._outputs][:back]
        self._noise = None
        self.call += 1
        if self._kept is not None:
            latents = self._kept.put_back(latents, *self.table.noised[self.call].tolist())
        self.latents = latents


def inputs_of(trajectories: Sequence[Trajectory]) -> torch.Tensor:
    """The next inputs (N, C, h, w) of the network, conditions included; all have one, or none has."""
    latents = torch.cat([each.latents for each in trajectories])
    scaled = latents * _column([each.input_scale for each in trajectories], latents.device)
    conditions = [each.condition for each in trajectories if each.condition is not None]
    return torch.cat([scaled, torch.cat(conditions)], 1) if conditions else scaled


def timesteps_of(trajectories: Sequence[Trajectory]) -> torch.Tensor:
    """The next timesteps (N,), in fp32 on the CPU."""
    return torch.tensor([each.timestep for each in trajectories], dtype=torch.float32)


@torch.inference_mode()
def advance(trajectories: Sequence[Trajectory], outputs: Sequence[torch.Tensor]) -> None:
    """Takes in what the network answered, (1, C, h, w) for each; all latents are of one shape, and on one device.

    A row's numbers are the same to the last bit whatever rows are beside it. If it raises, nothing has changed.
    """
    for trajectory in trajectories:
        trajectory.draw()
    sums = [each.summands(output) for each, output in zip(trajectories, outputs, strict=True)]
    # Rows with many summands come first, so that each place of the sum is a run of rows from the first one on.
    order = sorted(range(len(sums)), key=lambda row: -len(sums[row][0]))
    places = len(sums[order[0]][0])
    padded = [[*sums[row][1], *[0.0] * (places - len(sums[row][1]))] for row in order]
    weights = devices.placed(padded, sums[0][0][0].device, torch.float32).T
    total = torch.cat([sums[row][0][0] for row in order]).mul_(weights[0].view(-1, 1, 1, 1))
    for place in range(1, places):
        summands = torch.cat([sums[row][0][place] for row in order if len(sums[row][0]) > place])
        rows = len(summands)
        total[:rows].addcmul_(summands, weights[place, :rows].view(-1, 1, 1, 1))
    for position, row in enumerate(order):
        trajectories[row].take(total[position : position + 1], outputs[row])


def _column(numbers: list[float], device: torch.device) -> torch.Tensor:
    return devices.placed(numbers, device, torch.float32).view(-1, 1, 1, 1)
