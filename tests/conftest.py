import pytest
import torch

pytest_plugins = ["infer_program", "packages"]


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
