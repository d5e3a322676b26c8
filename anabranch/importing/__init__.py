"""Brings models of other frameworks into a repository: a converter runs where the framework is, and is checked here.

                            in the framework's interpreter        here
    .pt2, MODULE:NAME  -->  [ converter.py ]  -- model.onnx -->   [ parity ]  -->  NAME/VERSION/model.onnx
    SavedModel, .keras                        -- cases -------->

The converter is a script that imports nothing of ours: PyTorch and TensorFlow need packages that PyFlink cannot live
with, so it runs in whatever interpreter has them. What it hands over are files: the model, and cases, each the inputs
of one run and what the framework itself gave for them.
"""
