"""Settings of the probes that deltas are measured on, shared by all commands that measure one."""

from __future__ import annotations

from dataclasses import dataclass

from llgbm.config import ModelSpec
from llgbm.matching.probe_encoding import spread_layers
from llgbm.probes import DOMAINS, ProbeSet, create_domain_probes, create_generic_probes, create_mixed_probes


@dataclass(frozen=True)
class ProbeConfig:
    """Which probes, in which form, read at which layers."""

    kind: str = "mixed"
    """generic, mixed, or one domain, such as math."""
    count: int = 12
    """Number of probes."""
    domains: tuple[str, ...] = DOMAINS
    """Domains that mixed probes are drawn from, besides the generic texts."""
    chat: bool = True
    """Each probe is a user's turn in the chat template; otherwise the bare text."""
    max_length: int = 192
    """Limit of a probe in tokens, template included."""
    seed: int = 0
    """Which mixed probes are drawn."""
    layers: int = 2
    """Layers that are read, at equal distances, the last one among them; 1 is the last alone, as in the paper."""

    def build(self) -> ProbeSet:
        """The probes.

        Raises:
            ConfigError: no such kind or domain, or fewer texts than asked for.
        """
        if self.kind == "generic":
            return create_generic_probes(self.count, chat=self.chat, max_length=self.max_length)
        if self.kind == "mixed":
            return create_mixed_probes(
                self.count, domains=self.domains, seed=self.seed, chat=self.chat, max_length=self.max_length
            )
        return create_domain_probes(self.kind, self.count, chat=self.chat, max_length=self.max_length)

    def layers_of(self, model: ModelSpec) -> tuple[int, ...]:
        """The layers that are read.

        Raises:
            ConfigError: the base has fewer.
        """
        return spread_layers(model, self.layers)
