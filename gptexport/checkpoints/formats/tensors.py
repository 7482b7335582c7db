"""A module's tensors before it is cast, so that nothing but the dtype of its weights can change without being named."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn as nn


@dataclass(frozen=True)
class Tensors:
    """Every parameter and buffer of a module under each of its names."""

    values: dict[str, torch.Tensor]
    versions: dict[str, int]  # how often each had been written to
    first: dict[str, str]  # of each name the first name of the same tensor

    @staticmethod
    def of(module: nn.Module) -> Tensors:
        names = dict(
            chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
        )
        known: dict[int, str] = {}
        first = {name: known.setdefault(id(tensor), name) for name, tensor in names.items()}
        versions = {name: tensor._version for name, tensor in names.items()}
        return Tensors({name: tensor.detach() for name, tensor in names.items()}, versions, first)

    def changes(self, module: nn.Module) -> list[str]:
        """What happened to them that casting to a wider dtype does not do, a line each."""
        after = Tensors.of(module)
        lines = [f"{name} is gone" for name in self.values.keys() - after.values.keys()]
        lines += [f"{name} is new" for name in after.values.keys() - self.values.keys()]
        for name in self.values.keys() & after.values.keys():
            if not _same(self.values[name], after.values[name]):
                lines.append(f"{name} was {_shown(self.values[name])} and is {_shown(after.values[name])}")
            elif (
                self.values[name].data_ptr() == after.values[name].data_ptr()
                and self.versions[name] != after.versions[name]
            ):
                lines.append(f"{name} was written to")
            if self.first[name] != after.first[name]:
                lines.append(f"{name} was {self.first[name]} and is {after.first[name]}")
        return sorted(lines)


def _same(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether nothing was lost: the one is the other, in its dtype or a wider one."""
    if before.shape != after.shape or before.is_complex() != after.is_complex():
        return False
    if before.dtype == after.dtype and before.data_ptr() == after.data_ptr():
        return True
    bits = [x.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for x in (before, after.to(before.dtype))]
    return torch.equal(*bits)


def _shown(tensor: torch.Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    values = [f"{value:.4g}" for value in tensor.reshape(-1)[:3].tolist()]
    return f"{dtype} {tuple(tensor.shape)} ({', '.join(values)}{', ...' if tensor.numel() > 3 else ''})"
