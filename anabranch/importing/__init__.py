"""Imports models of other frameworks into a model repository.

                           framework's interpreter             this process
    .pt2, MODULE:NAME -> [ converter_script ] -> model.onnx -> [ parity ] -> NAME/VERSION/model.onnx
    SavedModel, .keras                        -> case-*.npz ->

The script runs in an interpreter of its own, because PyTorch and TensorFlow need packages that PyFlink does not
accept. It imports nothing of Anabranch, and writes the model and cases: inputs and outputs of runs of the framework.
"""
