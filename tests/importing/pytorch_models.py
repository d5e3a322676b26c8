"""Run by an interpreter that has PyTorch, or imported by the converter there: the models that are imported.

python pytorch_models.py FOLDER writes `encoder.pt2`.
"""

import sys
from pathlib import Path

import torch


class Encoder(torch.nn.Module):
    """A small transformer: words in, a score for each of five classes out."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(50, 32)
        self.layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = torch.nn.Linear(32, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[rows, words] -> [rows, 5]."""
        return self.head(self.layer(self.words(tokens)).mean(1))


class Pair(torch.nn.Module):
    """Two inputs, two named outputs, one of them of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.weigh = torch.nn.Linear(4, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        """[rows, 4] twice -> [rows, 3], [rows]."""
        both = self.weigh(left) * self.weigh(right)
        return {"product": both, "largest": both.argmax(1)}


class Mixed(torch.nn.Module):
    """Rows that know of each other, and how many they are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[2, 3] -> [2, 3]."""
        return x @ torch.ones(3, 2) @ x


class Noise(torch.nn.Module):
    """Never the same twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 3] -> [rows, 3]."""
        return x + torch.rand_like(x)


def make_pair() -> Pair:
    """What a factory gives."""
    return Pair()


if __name__ == "__main__":
    torch.manual_seed(1)
    program = torch.export.export(
        Encoder().eval(), (torch.randint(0, 50, (2, 7)),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, Path(sys.argv[1]) / "encoder.pt2")
