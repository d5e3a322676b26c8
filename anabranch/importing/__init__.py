"""Imports models of other frameworks into a model repository.

    source -> converter_script, in the framework's interpreter -> model.onnx, cases -> parity -> repository

PyTorch and TensorFlow need packages that PyFlink does not accept, so the script imports nothing of Anabranch. A case
has inputs and outputs of one run of the framework.
"""
