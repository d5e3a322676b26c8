"""PyTorch models for import tests, run or imported by an interpreter with PyTorch.

python pytorch_models.py FOLDER writes `encoder.pt2`.
"""

import sys
from pathlib import Path

import torch


class Encoder(torch.nn.Module):
    """A small transformer that scores five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(50, 32)
        self.layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = torch.nn.Linear(32, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[rows, words] -> [rows, 5]."""
        return self.head(self.layer(self.words(tokens)).mean(1))


class Pair(torch.nn.Module):
    """A module with two inputs and two named outputs, one of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.weigh = torch.nn.Linear(4, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        """[rows, 4] twice -> [rows, 3], [rows]."""
        both = self.weigh(left) * self.weigh(right)
        return {"product": both, "largest": both.argmax(1)}


class Mixed(torch.nn.Module):
    """Mixes the rows of a batch of two."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[2, 3] -> [2, 3]."""
        return x @ torch.ones(3, 2) @ x


class Noise(torch.nn.Module):
    """Adds random noise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 3] -> [rows, 3]."""
        return x + torch.rand_like(x)


def make_pair() -> Pair:
    """Makes a module, as a factory does."""
    return Pair()


if __name__ == "__main__":
    torch.manual_seed(1)
    program = torch.export.export(
        Encoder().eval(), (torch.randint(0, 50, (2, 7)),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, Path(sys.argv[1]) / "encoder.pt2")
