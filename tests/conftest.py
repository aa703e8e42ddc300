from collections.abc import Callable

import pytest
import torch
import torch.jit._builtins

pytest_plugins = ["infer_program", "packages"]


def _keep_builtins_alive() -> None:
    """TorchScript tells operators by their address, and PyTorch lets some die (those of
    torch.ao.quantization, when torch.compile loads it): anything that is created there later is
    taken for the operator, and scripting fails."""
    register = torch.jit._builtins._register_builtin
    alive: list[Callable[..., object]] = []

    def register_for_ever(function: Callable[..., object], name: str) -> None:
        alive.append(function)
        register(function, name)

    torch.jit._builtins._register_builtin = register_for_ever


_keep_builtins_alive()


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
