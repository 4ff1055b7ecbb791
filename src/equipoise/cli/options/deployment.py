"""What serves, put together from the command line: recording, ranks, hardware and model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from equipoise.cli.options.hardware import HardwareArguments
from equipoise.cli.options.machine import MachineArguments
from equipoise.cli.options.model import ModelArguments
from equipoise.engines.transformers.config import ModelConfig
from equipoise.simulate.machine import Machine
from equipoise.topology import Topology
from equipoise.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A recording, and what serves such steps.

    Parameters
    ----------
    hardware
        The hardware and how it runs steps, if it was named.
    config
        The model's configuration, if it was given.
    """

    recording: Trace
    topology: Topology
    hardware: HardwareArguments
    config: ModelConfig | None

    @classmethod
    def read(
        cls,
        source: object,
        read: Callable[[], Trace],
        ranks: int,
        machine: MachineArguments,
        hardware: HardwareArguments,
        model: ModelArguments,
    ) -> Self:
        """Read the recording once the ranks are known to be right, and hold it to the model.

        Parameters
        ----------
        source
            What the recording is called in a refusal.
        """
        topology = hardware.topology(machine, ranks)
        recording = read()
        model.check_fits(f"{source}", recording.num_experts, recording.layer_ids)
        return cls(recording=recording, topology=topology, hardware=hardware, config=model.config)

    @cached_property
    def machine(self) -> Machine | None:
        """What steps like those recorded take; ``None`` without hardware."""
        return self.hardware.machine(self.recording, self.config, self.topology)

    @property
    def facts(self) -> Mapping[str, str]:
        """Where its links and times came from; empty without hardware."""
        return {**self.hardware.facts, **({} if self.machine is None else self.machine.facts)}
