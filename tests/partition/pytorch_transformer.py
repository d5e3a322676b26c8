"""Run by an interpreter that has PyTorch: `python pytorch_transformer.py FILE` exports a transformer of four layers."""

import sys

import torch


class Transformer(torch.nn.Module):
    """Maps words to the next word's scores and their certainty."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(200, 64)
        layer = torch.nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        # One matrix at both ends, as in GPT: stages at both ends need it.
        self.head = torch.nn.Linear(64, 200, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[rows, words], [rows, words] -> [rows, words, 200], [rows]."""
        hidden = self.layers(self.words(tokens), src_key_padding_mask=mask)
        scores = self.head(hidden)
        return scores, scores.amax((1, 2))


if __name__ == "__main__":
    torch.manual_seed(1)
    rows, words = torch.export.Dim("rows"), torch.export.Dim("words")
    torch.onnx.export(
        Transformer().eval(),
        (torch.randint(0, 200, (2, 12)), torch.zeros(2, 12, dtype=torch.bool)),
        sys.argv[1],
        input_names=["tokens", "mask"],
        output_names=["scores", "best"],
        dynamic_shapes=({0: rows, 1: words}, {0: rows, 1: words}),
        dynamo=True,
        external_data=False,
    )
